//! Persistent tap devices.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{IntegerSetter, Setter, ioctl, opcode};

use crate::error::TapError;
use crate::link::Tun;
use crate::names::TapName;

/// Flags of a tap: Ethernet frames, no packet information, virtio header.
pub(crate) const TAP_FLAGS: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;

/// linux/if.h, `struct ifreq`: the name, then a union of which only the flags
/// are used here; 40 bytes in all.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

// linux/if_tun.h: _IOW('T', n, int).
const SET_IFF: rustix::ioctl::Opcode = opcode::write::<libc::c_int>(b'T', 202);
const SET_PERSIST: rustix::ioctl::Opcode = opcode::write::<libc::c_int>(b'T', 203);
const SET_OWNER: rustix::ioctl::Opcode = opcode::write::<libc::c_int>(b'T', 204);

/// Makes the persistent tap, or gives an existing one to `owner`, unless
/// `found` shows that it is right already.
pub(crate) fn ensure(tap: &TapName, owner: u32, found: Option<&Tun>) -> Result<(), TapError> {
    if found.is_some_and(|tun| tun.as_ours && tun.owner == Some(owner)) {
        return Ok(());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(TapError::NoDriver)?;
    attach(&file, tap).map_err(|source| match (source.raw_os_error(), found) {
        (Some(libc::EBUSY), Some(tun)) => TapError::Busy {
            tap: tap.clone(),
            found: tun
                .owner
                .map_or_else(|| "nobody".to_owned(), |uid| uid.to_string()),
            expected: owner,
        },
        _ => TapError::Refused {
            tap: tap.clone(),
            action: "make",
            source,
        },
    })?;
    // SAFETY: TUNSETOWNER takes its argument by value and touches no memory
    // of ours.
    let request = unsafe { IntegerSetter::<SET_OWNER>::new_usize(owner as usize) };
    run(&file, request).map_err(|source| TapError::Refused {
        tap: tap.clone(),
        action: "set the owner of",
        source,
    })?;
    // SAFETY: TUNSETPERSIST takes its argument by value and touches no memory
    // of ours.
    let request = unsafe { IntegerSetter::<SET_PERSIST>::new_usize(1) };
    run(&file, request).map_err(|source| TapError::Refused {
        tap: tap.clone(),
        action: "keep",
        source,
    })
}

fn attach(file: &File, tap: &TapName) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    // A tap's name has 14 bytes, so the last bytes stay zero.
    for (to, from) in name.iter_mut().zip(tap.as_str().bytes()) {
        *to = from;
    }
    let request = InterfaceRequest {
        name,
        flags: TAP_FLAGS,
        rest: [0; 22],
    };
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which InterfaceRequest is laid
    // out as and as large as; the kernel copies it and keeps no pointer.
    let request = unsafe { Setter::<SET_IFF, InterfaceRequest>::new(request) };
    run(file, request)
}

fn run<I: rustix::ioctl::Ioctl<Output = ()>>(file: &File, request: I) -> io::Result<()> {
    // SAFETY: each request here is given to the device whose driver defines
    // it, with an argument of the type it expects (see where it is made).
    unsafe { ioctl(file.as_fd(), request) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_layout_and_numbers() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        assert_eq!(SET_IFF, 0x4004_54ca);
        assert_eq!(SET_PERSIST, 0x4004_54cb);
        assert_eq!(SET_OWNER, 0x4004_54cc);
        assert_eq!(TAP_FLAGS, 0x5002);
    }
}
