//! Whom a request has to be meant for. A web page could have its own name resolve to this host and read what is here;
//! its requests say that name.

use std::net::{IpAddr, SocketAddr};

use crate::config::HostPort;

/// The names that the endpoint answers to.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// As configured.
    pub listen: HostPort,
    /// Names besides, whatever the port.
    pub more: Vec<String>,
}

impl Hosts {
    /// Whether a request that came to `local` may have this Host field: the address it came to, the configured one, a
    /// loopback address by its name, or one of the names besides.
    pub fn permit(&self, host: &str, local: SocketAddr) -> bool {
        // Without a port it is HTTP's.
        let Ok(HostAndPort { name, port }) = HostAndPort::parse(host) else { return false };
        if self.more.iter().any(|more| more.eq_ignore_ascii_case(&name)) {
            return true;
        }
        let at = local.ip().to_canonical();
        let is_here = name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical() == at)
            || name.eq_ignore_ascii_case(self.listen.host())
            || (at.is_loopback() && name.eq_ignore_ascii_case("localhost"));
        is_here && port == local.port()
    }
}

struct HostAndPort {
    name: String,
    port: u16,
}

impl HostAndPort {
    fn parse(host: &str) -> Result<HostAndPort, ()> {
        let read = |text: &str| {
            let at: HostPort = text.parse().map_err(drop)?;
            Ok(HostAndPort { name: at.host().to_owned(), port: at.port() })
        };
        read(host).or_else(|()| read(&format!("{host}:80")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(listen: &str, local: &str, host: &str) -> bool {
        let hosts = Hosts { listen: listen.parse().unwrap(), more: vec!["relay.example".to_owned()] };
        hosts.permit(host, local.parse().unwrap())
    }

    #[test]
    fn the_address_a_request_has_come_to_is_permitted_with_its_port_only() {
        let on_any = |host| permits("0.0.0.0:9433", "192.0.2.1:9433", host);
        assert!(on_any("192.0.2.1:9433") && on_any("0.0.0.0:9433"));
        for other in [
            "192.0.2.1",
            "192.0.2.1:80",
            "192.0.2.2:9433",
            "localhost:9433",
            "evil.example:9433",
            "",
            ":9433",
        ] {
            assert!(!on_any(other), "{other:?}");
        }
        assert!(permits("[::]:9433", "[::ffff:192.0.2.1]:9433", "192.0.2.1:9433"));
        assert!(permits("[::]:9433", "[2001:db8::1]:9433", "[2001:db8:0::1]:9433"));
        assert!(permits("192.0.2.1:80", "192.0.2.1:80", "192.0.2.1"), "80 is HTTP's own");
    }

    #[test]
    fn localhost_is_a_name_of_loopback_addresses_and_of_no_others() {
        assert!(permits("127.0.0.1:9433", "127.0.0.1:9433", "localhost:9433"));
        assert!(permits("[::1]:9433", "[::1]:9433", "LOCALHOST:9433"));
        assert!(!permits("127.0.0.1:9433", "127.0.0.1:9433", "localhost"));
    }

    #[test]
    fn listed_names_are_permitted_on_whatever_port_they_are_reached() {
        for host in ["relay.example", "Relay.Example:9433", "relay.example:443"] {
            assert!(permits("127.0.0.1:9433", "127.0.0.1:9433", host), "{host}");
        }
        assert!(!permits("127.0.0.1:9433", "127.0.0.1:9433", "x.relay.example:9433"));
    }
}
