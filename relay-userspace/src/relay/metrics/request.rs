//! A request as it comes: as much of HTTP/1.1 as an endpoint that is only looked at needs.

use std::net::SocketAddr;

use super::hosts::Hosts;

/// The longest head of a request that is read, in bytes.
pub const MAX_HEAD_LEN: usize = 8 * 1024;

/// Fields that a head may have.
const MAX_FIELDS: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/metrics`.
    Metrics,
    /// `/livez`.
    Live,
    /// `/readyz`.
    Ready,
}

/// Why nothing is answered but a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not a request, or without exactly one Host field.
    Malformed,
    /// Too long, or too many fields.
    TooLarge,
    /// Another method than GET.
    Method,
    /// Meant for another host.
    Host,
    /// There is no such page.
    Path,
}

impl Page {
    /// What the bytes that have come ask for; none: the head is not whole yet. `local`: the address that they came to.
    ///
    /// # Errors
    /// Nothing that is answered.
    pub fn asked_for(head: &[u8], hosts: &Hosts, local: SocketAddr) -> Result<Option<Page>, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(head) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) if head.len() < MAX_HEAD_LEN => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Fault::TooLarge);
            }
            Err(_) => return Err(Fault::Malformed),
        }
        let mut named = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
        let host = match (named.next(), named.next()) {
            (Some(field), None) => std::str::from_utf8(field.value).map_err(|_| Fault::Malformed)?,
            _ => return Err(Fault::Malformed),
        };
        if !hosts.permit(host.trim(), local) {
            return Err(Fault::Host);
        }
        if request.method != Some("GET") {
            return Err(Fault::Method);
        }
        let path = request.path.unwrap_or_default();
        match path.split_once('?').map_or(path, |(path, _query)| path) {
            "/metrics" => Ok(Some(Page::Metrics)),
            "/livez" => Ok(Some(Page::Live)),
            "/readyz" => Ok(Some(Page::Ready)),
            _ => Err(Fault::Path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(head: impl AsRef<[u8]>) -> Result<Option<Page>, Fault> {
        let hosts = Hosts { listen: "127.0.0.1:9433".parse().unwrap(), more: Vec::new() };
        Page::asked_for(head.as_ref(), &hosts, "127.0.0.1:9433".parse().unwrap())
    }

    const HOST: &str = "Host: 127.0.0.1:9433\r\n\r\n";

    #[test]
    fn the_three_pages_are_found_and_nothing_else() {
        for (path, page) in
            [("/metrics", Page::Metrics), ("/livez", Page::Live), ("/readyz?verbose", Page::Ready)]
        {
            assert_eq!(asked(format!("GET {path} HTTP/1.1\r\n{HOST}")), Ok(Some(page)));
        }
        for path in ["/", "/metrics/", "/../metrics", "http://127.0.0.1:9433/metrics", "*"] {
            assert_eq!(asked(format!("GET {path} HTTP/1.1\r\n{HOST}")), Err(Fault::Path), "{path}");
        }
    }

    #[test]
    fn what_is_no_get_for_this_host_is_refused() {
        for method in ["POST", "HEAD", "OPTIONS", "get"] {
            assert_eq!(
                asked(format!("{method} /metrics HTTP/1.1\r\n{HOST}")),
                Err(Fault::Method),
                "{method}"
            );
        }
        let of_another = "GET /metrics HTTP/1.1\r\nHost: evil.example:9433\r\n\r\n";
        assert_eq!(asked(of_another), Err(Fault::Host));
        let of_two = format!("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n{HOST}");
        assert_eq!(asked(of_two), Err(Fault::Malformed));
        assert_eq!(asked("GET /metrics HTTP/1.1\r\n\r\n"), Err(Fault::Malformed));
        assert_eq!(asked("\x16\x03\x01\x02\0\x01"), Err(Fault::Malformed));
    }

    #[test]
    fn a_head_is_waited_for_until_it_is_too_long() {
        let whole = format!("GET /livez HTTP/1.1\r\n{HOST}");
        for len in 0..whole.len() {
            assert_eq!(asked(&whole[..len]), Ok(None), "{len}");
        }
        let long = format!("GET /livez HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD_LEN));
        assert_eq!(asked(&long[..MAX_HEAD_LEN - 1]), Ok(None));
        assert_eq!(asked(&long[..MAX_HEAD_LEN]), Err(Fault::TooLarge));
        let fields = "X: y\r\n".repeat(MAX_FIELDS + 1);
        assert_eq!(asked(format!("GET /livez HTTP/1.1\r\n{fields}{HOST}")), Err(Fault::TooLarge));
    }
}
