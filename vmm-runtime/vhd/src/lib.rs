//! Virtual hard disks in the VHD format.
