//! `id rotate`: another key, and with it another node id. What was known of the old one does not hold for the new.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use relay_userspace::config::{AtlasRoot, Config, Role};
use relay_userspace::identity::{NodeId, NodeKey};
use serde_json::json;

use crate::args::Rotate;
use crate::{node, output, xdp};

pub fn run(root: &AtlasRoot, options: &Rotate) -> anyhow::Result<()> {
    let path = root.node_key();
    let old = NodeKey::load(&path)?.node_id();
    let role = Config::load(&root.config(), root).ok().map(|config| config.role());
    let running = node::daemon_runs()?;
    let breaks = breaks(old, role, running);
    if !options.yes {
        output::line(format_args!("A new key in the place of that of {old}:"));
        breaks.iter().for_each(|what| output::line(format_args!("- {what}")));
        bail!("nothing was changed: to rotate the key, run `atlas-relay id rotate --yes`");
    }
    if running && !options.force {
        bail!(
            "a daemon runs with this key and would go on with it: stop it first (a service: `systemctl stop`, or it is started \
             again), or add --force and restart it afterwards"
        );
    }
    if !running && role == Some(Role::Relay) {
        // Under the new id nobody would find it again.
        xdp::remove_left()
            .context("what a relay with the old key has left attached has to be removed first")?;
    }
    let new = NodeKey::generate()?;
    let kept = kept_at(&path, SystemTime::now());
    new.replace(&path, &kept)?;
    if options.format.json {
        return output::json(&json!({
            "old_node_id": old,
            "node_id": new.node_id(),
            "kept": kept,
            "breaks": breaks,
        }));
    }
    output::line(format_args!("Old ID   : {old}"));
    output::line(format_args!("Node ID  : {}", new.node_id()));
    output::line(format_args!("Key      : {}", path.display()));
    output::line(format_args!(
        "Kept     : {} (the old key; delete it once nothing needs it)",
        kept.display()
    ));
    breaks.iter().for_each(|what| output::line(format_args!("- {what}")));
    Ok(())
}

/// What the old id stands for elsewhere. Without a configuration the node may be either.
fn breaks(old: NodeId, role: Option<Role>, running: bool) -> Vec<String> {
    let mut breaks = Vec::new();
    if role != Some(Role::Relay) {
        breaks.push(format!("peers that have {old} in [agent] accept, [[agent.allow]] or [[agent.forward]] have to be told the new id"));
        breaks.push(format!("relays that have {old} in [access] allow or deny have to be told, too; their bans and quotas begin anew"));
    }
    if role != Some(Role::Agent) {
        breaks.push(format!("agents that have this relay as {old}@HOST:PORT in network.relays, or its key in state/known_relays, refuse it until that is changed"));
        breaks.push("its sessions cannot be bound again and end".to_owned());
    }
    if running {
        breaks.push("the daemon that runs keeps the old key until it is restarted: end it by `atlas-relay stop` (a service: `systemctl stop`), so that nothing of the old id stays attached".to_owned());
    }
    breaks
}

/// `keys/node-key.20261126T192533Z.pem`: beside the key, by the time that it was replaced.
fn kept_at(path: &std::path::Path, now: SystemTime) -> PathBuf {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    path.with_extension(format!("{}.pem", utc(since.as_secs())))
}

/// Seconds since the Unix epoch as UTC, in ISO 8601's basic format.
fn utc(unix_s: u64) -> String {
    let (mut days, second) = (unix_s / 86_400, unix_s % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}{month:02}{:02}T{hour:02}{minute:02}{:02}Z", days + 1, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_utc() {
        // As `date --utc` says.
        for (unix_s, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_868_799, "20000229T235959Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_767_225_599, "20251231T235959Z"),
            (1_795_721_133, "20261126T192533Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            assert_eq!(utc(unix_s), text);
        }
    }

    #[test]
    fn what_breaks_is_told_for_what_the_node_is() {
        let old = NodeId::from_bytes([1; 32]);
        let told = |role, running| breaks(old, role, running).join("\n");
        assert!(
            told(Some(Role::Agent), false).contains("accept")
                && !told(Some(Role::Agent), false).contains("known_relays")
        );
        assert!(
            told(Some(Role::Relay), false).contains("known_relays")
                && !told(Some(Role::Relay), false).contains("accept")
        );
        assert!(told(None, true).contains("accept") && told(None, true).contains("known_relays"));
        assert!(
            told(None, true).contains("until it is restarted") && !told(None, false).contains("restarted")
        );
    }
}
