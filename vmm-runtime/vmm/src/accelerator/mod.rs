//! What can run a guest on this host: found out by running one, not by looking for `/dev/kvm`.
