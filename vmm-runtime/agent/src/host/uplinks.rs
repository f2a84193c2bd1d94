//! The network interfaces that the Host names as uplinks, as this machine has them.

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};
use std::{ffi::CStr, io, net::Ipv4Addr, ptr};

/// What an interface looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// There is none of this name.
    Missing,
    /// It exists and carries this IPv4 address, if any.
    Present {
        /// Its first IPv4 address.
        address: Option<Ipv4Addr>,
    },
    /// The machine did not say.
    Unknown(String),
}

/// Looks at `interface`.
#[must_use]
pub fn look(interface: &str) -> Interface {
    match exists(interface) {
        Ok(true) => {}
        Ok(false) => return Interface::Missing,
        Err(error) => {
            return Interface::Unknown(format!(
                "interface {interface} cannot be looked at: {error}"
            ));
        }
    }
    match ipv4_addresses() {
        Ok(addresses) => Interface::Present {
            address: addresses
                .into_iter()
                .find(|(name, _)| name == interface)
                .map(|(_, address)| address),
        },
        Err(error) => Interface::Unknown(format!(
            "the addresses of {interface} cannot be read: {error}"
        )),
    }
}

/// Asks the kernel, not sysfs, which may be mounted for another network namespace.
fn exists(interface: &str) -> rustix::io::Result<bool> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    match rustix::net::netdevice::name_to_index(&socket, interface) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV | Errno::INVAL | Errno::NAMETOOLONG) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Every IPv4 address of this network namespace with its interface.
fn ipv4_addresses() -> io::Result<Vec<(String, Ipv4Addr)>> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `list` is a valid place for a pointer; on success it is freed below, once.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: getifaddrs(3) gives a list of valid entries that ends with null, and nothing frees it before the end.
        let current = unsafe { &*entry };
        entry = current.ifa_next;
        if current.ifa_addr.is_null() || current.ifa_name.is_null() {
            continue;
        }
        // SAFETY: not null, and at least a `sockaddr` by getifaddrs(3).
        if i32::from(unsafe { (*current.ifa_addr).sa_family }) != libc::AF_INET {
            continue;
        }
        // SAFETY: the family says that it is a `sockaddr_in`; the C library allocates it aligned for one.
        let address = unsafe { ptr::read_unaligned(current.ifa_addr.cast::<libc::sockaddr_in>()) };
        // SAFETY: not null, and a string that ends with NUL by getifaddrs(3).
        let name = unsafe { CStr::from_ptr(current.ifa_name) };
        // An address with a label of its own is named `eth0:label`.
        let name = name.to_string_lossy();
        let name = name.split(':').next().unwrap_or_default().to_owned();
        found.push((name, Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))));
    }
    // SAFETY: `list` came from getifaddrs and is not used any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_carries_its_address() {
        match look("lo") {
            Interface::Present { address } => {
                // In a fresh namespace it is down and has none.
                assert!(
                    address.is_none_or(|address| address.is_loopback()),
                    "{address:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_that_no_interface_has_are_missing() {
        for name in ["", "..", ".", "../lo", "lo/../lo", "no-such-if"] {
            assert_eq!(look(name), Interface::Missing, "{name:?}");
        }
    }
}
