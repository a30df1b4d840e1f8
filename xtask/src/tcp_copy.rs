//! A file through a TCP connection, between two ordinary programs (`socat`) that know nothing of relays.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::lab::{Host, Process};
use crate::tool::{Tool, find};

/// Starts a receiver on `host` that accepts one connection at `listen` and writes what comes to `file`, and waits until
/// it listens.
///
/// # Errors
/// socat is missing or failed.
pub fn receive(host: &Host, listen: SocketAddr, file: &Path) -> anyhow::Result<Process> {
    let directory = file.parent().context("the file has no folder")?;
    let tool = socat()?
        .arg(format!("TCP-LISTEN:{},bind={},reuseaddr", listen.port(), listen.ip()))
        .arg(format!("CREATE:{}", file.display()));
    let mut receiver = host.start(&tool, directory, "receiver")?;
    // The receiver's own view of the namespace that it is in.
    let sockets = format!("/proc/{}/net/tcp", receiver.id());
    receiver.wait_until("the listening socket", Duration::from_secs(5), |_| {
        has_listener(&std::fs::read_to_string(&sockets).unwrap_or_default(), listen.port()).then_some(())
    })?;
    Ok(receiver)
}

/// Starts a sender on `host` that connects to `to` and sends `file`.
///
/// # Errors
/// socat is missing or failed.
pub fn send(host: &Host, to: SocketAddr, file: &Path, directory: &Path) -> anyhow::Result<Process> {
    let tool = socat()?.arg(format!("OPEN:{},rdonly", file.display())).arg(format!("TCP:{to}"));
    host.start(&tool, directory, "sender")
}

fn socat() -> anyhow::Result<Tool> {
    if find("socat").is_none() {
        bail!("socat is missing; on Debian or Ubuntu, as root: apt-get install socat");
    }
    Ok(Tool::new("socat").words("-u -b 262144"))
}

/// Whether `/proc/net/tcp` lists a socket that listens on `port`.
fn has_listener(sockets: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().is_some_and(|address| address.ends_with(&local)) && columns.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_found() {
        let sockets = "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:2328 00000000:0000 0A 0:0\n   \
                       1: 0100007F:2329 0100007F:1111 01 0:0\n";
        assert!(has_listener(sockets, 9000));
        assert!(!has_listener(sockets, 9001));
    }
}
