//! Who has the relay's port: tried, without the option by which the relay's own sockets share it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};

use crate::doctor::facts::PortState;

/// Whether the port is free.
pub fn state(port: u16) -> PortState {
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => PortState::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => PortState::Taken,
        Err(error) => PortState::Unknown(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_has_is_taken_until_it_is_given_back() {
        let held = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = held.local_addr().unwrap().port();
        assert_eq!(state(port), PortState::Taken);
        assert_eq!(state(0), PortState::Free);
    }
}
