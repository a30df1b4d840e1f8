//! Packet filters and connection tracking: nf_tables by netlink, the files of ufw, firewalld's, /proc/sys.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::kernel::number;
use super::program::said;
use crate::doctor::packet_rules::{InputChain, Newcomer, PortFate, Ruleset};
use crate::relay::datapath::packet_filter::{Chain, input_chains};

/// What is known of nftables.
pub struct Filters {
    /// The chains for packets to this host, or why they cannot be told, for people.
    pub chains: Result<Vec<InputChain>, String>,
    /// Whether newcomers' connections are left untracked; none if the rules are not known or cannot be judged.
    pub untracked: Option<bool>,
}

/// What becomes of a newcomer: by all rules where nft tells them, else by the policies of the chains alone.
pub fn filters(newcomer: Newcomer<'_>) -> Filters {
    if let Some(rules) = ruleset() {
        return Filters {
            chains: Ok(rules.input_chains(newcomer)),
            untracked: rules.leaves_untracked(newcomer),
        };
    }
    let by_policy = |Chain { family, table, name, drops }| InputChain {
        family: family.to_owned(),
        table,
        name,
        port: PortFate::Untold { drops },
    };
    Filters { chains: chains().map(|chains| chains.into_iter().map(by_policy).collect()), untracked: None }
}

/// All rules, if nft is here and may read them.
fn ruleset() -> Option<Ruleset> {
    Ruleset::parse(&said(Command::new("nft").args(["--json", "list", "ruleset"]))?).ok()
}

fn chains() -> Result<Vec<Chain>, String> {
    input_chains().or_else(|error: io::Error| match error.raw_os_error() {
        Some(libc::EPERM) => Err("only root, or who has cap_net_admin, may read the rules".to_owned()),
        // A kernel without nf_tables has none of its chains.
        Some(libc::EINVAL | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP) => Ok(Vec::new()),
        _ => Err(error.to_string()),
    })
}

/// Whether a rule of ufw names the port; none if ufw is not enabled.
pub fn ufw(port: u16) -> Option<bool> {
    let enabled = fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|conf| is_enabled(&conf));
    let rules = fs::read_to_string("/etc/ufw/user.rules");
    enabled.then(|| rules.is_ok_and(|rules| names(&rules, port)))
}

fn is_enabled(conf: &str) -> bool {
    conf.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes"))
}

/// ufw writes what each of its rules was made of above it: `### tuple ### allow udp 4433 ...`, or `any` for both protocols.
fn names(rules: &str, port: u16) -> bool {
    let port = port.to_string();
    rules.lines().filter_map(|line| line.strip_prefix("### tuple ### allow ")).any(|rule| {
        let mut words = rule.split_whitespace();
        matches!(words.next(), Some("udp" | "any")) && words.next() == Some(port.as_str())
    })
}

/// Whether firewalld runs. As a service it writes no file of its pid; then systemd's group of it is there as long as it runs,
/// which cannot be said of its folder in /run.
pub fn firewalld() -> bool {
    ["/run/firewalld.pid", "/sys/fs/cgroup/system.slice/firewalld.service"]
        .into_iter()
        .any(|path| Path::new(path).exists())
}

/// Connections that are tracked, and how many can be.
pub fn conntrack() -> Option<(u64, u64)> {
    let count = number("/proc/sys/net/netfilter/nf_conntrack_count")?;
    Some((count, number("/proc/sys/net/netfilter/nf_conntrack_max")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_ufw_for_the_port_is_found() {
        let rules = "*filter\n### RULES ###\n\n### tuple ### allow udp 4433 0.0.0.0/0 any 0.0.0.0/0 in\n-A ufw-user-input -p udp --dport 4433 -j ACCEPT\n";
        assert!(names(rules, 4433) && !names(rules, 443));
        assert!(names("### tuple ### allow any 443 0.0.0.0/0 any 0.0.0.0/0 in", 443));
        assert!(!names("### tuple ### allow tcp 443 0.0.0.0/0 any 0.0.0.0/0 in", 443));
        assert!(!names("### tuple ### deny udp 443 0.0.0.0/0 any 0.0.0.0/0 in", 443));
        assert!(
            is_enabled("# comment\nENABLED=yes\n")
                && !is_enabled("ENABLED=no\n")
                && !is_enabled("#ENABLED=yes")
        );
    }
}
