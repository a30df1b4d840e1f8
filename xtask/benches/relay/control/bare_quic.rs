//! The server that a relay's control is compared with: quinn as it comes, with the same TLS, and nothing after it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use quinn::{Endpoint, TransportConfig};
use relay_userspace::identity::NodeKey;
use relay_userspace::tls;
use tokio::runtime::Builder;
use xtask::lab::{Host, Process};
use xtask::terminal;
use xtask::tool::Tool;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BareQuic {
    /// As quinn comes.
    Plain,
    /// Without the discovery of larger packets, which a relay's control goes without as well.
    NoMtuDiscovery,
}

impl BareQuic {
    /// Starts a process of this program that does [`serve`](Self::serve), on CPU `cpu` alone. Returns its port too.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(self, cpu: usize, directory: &Path) -> anyhow::Result<(Process, u16)> {
        let kind = self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let tool = Tool::new("taskset")
            .args(["--cpu-list", &cpu.to_string()])
            .arg(std::env::current_exe()?)
            .args(["--bare-quic", &kind]);
        let mut process = Host::here().start(&tool, directory, &format!("bare-quic-{kind}"))?;
        let port = |process: &Process| process.output().strip_suffix('\n')?.parse().ok();
        let port = process.wait_until("the port", Duration::from_secs(10), port)?;
        Ok((process, port))
    }

    /// Prints a port, and accepts connections there until it is killed. Each stays for as long as its client wants.
    ///
    /// # Errors
    /// The system refuses.
    pub fn serve(self, key: &NodeKey) -> anyhow::Result<()> {
        // As the relay's own.
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let mut config = tls::server_config(key, tls::ALPN_RELAY)?;
        if self == BareQuic::NoMtuDiscovery {
            let mut transport = TransportConfig::default();
            transport.mtu_discovery_config(None);
            config.transport_config(Arc::new(transport));
        }
        runtime.block_on(async {
            let endpoint = Endpoint::server(config, (Ipv4Addr::UNSPECIFIED, 0).into())?;
            terminal::result(endpoint.local_addr()?.port().to_string());
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        connection.closed().await;
                    }
                });
            }
            Ok(())
        })
    }
}
