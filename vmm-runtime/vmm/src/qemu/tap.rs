//! Opening a tap device by its name.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

/// `_IOW('T', 202, int)` of linux/if_tun.h; the argument is a `struct ifreq` all the same.
const TUNSETIFF: Opcode = 0x4004_54ca;
/// A device for Ethernet frames (linux/if_tun.h).
const IFF_TAP: u16 = 0x0002;
/// No packet information before each frame.
const IFF_NO_PI: u16 = 0x1000;
/// A virtio-net header before each frame.
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` of linux/if.h on 64-bit machines: a name, then a union of 24 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Opens the tap device `name`, which must be there, for frames with virtio-net headers.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    // TUNSETIFF makes a device of that name if there is none; a guest would then be connected to nothing. Asked of a
    // socket and not of /sys, which may show another network namespace.
    let socket = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    if let Err(errno) = name_to_index(&socket, name) {
        return Err(match errno {
            Errno::NODEV => {
                io::Error::new(io::ErrorKind::NotFound, "there is no such network device")
            }
            errno => errno.into(),
        });
    }
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    // The last byte stays 0. `valid` allows 15 bytes.
    for (place, byte) in request.name.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, of which `InterfaceRequest` has the size and layout, and
    // which outlives the call.
    unsafe { ioctl(&file, SetInterface(&mut request)) }?;
    Ok(file.into())
}

struct SetInterface<'a>(&'a mut InterfaceRequest);

// SAFETY: the pointer is to a live `struct ifreq` that nobody else uses meanwhile, and the opcode is the one that takes
// such a pointer.
unsafe impl Ioctl for SetInterface<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        TUNSETIFF
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

#[cfg(test)]
mod tests {
    #[test]
    fn a_tap_that_is_not_there_is_not_made() {
        for _ in 0..2 {
            let error = super::open_tap("pdt-none").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
}
