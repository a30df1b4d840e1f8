//! `xdp load`, `xdp unload`, `xdp status`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use relay_userspace::admin::{self, Request};
use relay_userspace::relay::datapath::{Hook, pinned};
use relay_userspace::relay::keeper;
use relay_userspace::relay::report::Status;

use crate::args::{Format, XdpCommand, XdpMode};
use crate::node::Node;
use crate::{drain, node, output};

pub fn run(command: XdpCommand) -> anyhow::Result<()> {
    match command {
        XdpCommand::Load { interface, mode } => load(&interface, mode),
        XdpCommand::Unload { interface: Some(interface) } => unload(&interface),
        XdpCommand::Unload { interface: None } => unload_left(),
        XdpCommand::Status(format) => status(format),
    }
}

fn load(interface: &str, mode: XdpMode) -> anyhow::Result<()> {
    let hook = match mode {
        XdpMode::Native => Hook::Native,
        XdpMode::Generic => Hook::Generic,
    };
    let pin = pinned::attach(interface, hook)?;
    output::line(format_args!("Attached to {interface} as {}, kept by {}", hook.name(), pin.display()));
    Ok(())
}

fn unload(interface: &str) -> anyhow::Result<()> {
    pinned::detach(interface)?;
    output::line(format_args!("Detached from {interface}"));
    Ok(())
}

/// Removes what a stopped relay has left.
fn unload_left() -> anyhow::Result<()> {
    match remove_left()? {
        Some(place) => output::line(format_args!("Removed what the relay has left in {}", place.display())),
        None => output::line("The relay has left nothing"),
    }
    Ok(())
}

/// Removes the pins of this node's relay, which must not be running: the place where there were some.
pub fn remove_left() -> anyhow::Result<Option<PathBuf>> {
    let node = Node::open()?;
    // Held until all is removed: no daemon can begin to use it meanwhile.
    let _lock = admin::lock_out(&node.config.admin.socket)?;
    let Some(bpffs) = node.config.datapath.bpffs else { return Ok(None) };
    let place = bpffs.display();
    let removed = keeper::remove_pins(&bpffs, &node.key.node_id()).with_context(|| {
        format!("removing what the relay has left in {place}; it needs the relay's user or root")
    })?;
    Ok(removed.then_some(bpffs))
}

fn status(format: Format) -> anyhow::Result<()> {
    let answer = admin::ask(&node::admin_socket()?, Request::Status)?;
    if format.json {
        return output::json(&answer);
    }
    let status: Status = serde_json::from_value(answer)?;
    output::line(format_args!("Datapath     : {}", status.datapath));
    output::line(format_args!("Why          : {}", status.why));
    for interface in &status.interfaces {
        output::line(format_args!("Attached     : {} ({})", interface.name, interface.mode));
    }
    let table = status.table;
    output::line(format_args!(
        "Table        : {} of {} sessions, {:.1} MiB",
        table.sessions,
        table.max_sessions,
        table.bytes as f64 / f64::from(1 << 20)
    ));
    output::line(format_args!("Kept by      : {}", status.kept_by));
    if let Some(drain) = &status.drain {
        output::line(format_args!("Draining     : {}", drain::progress(drain)));
    }
    let capabilities = match status.capabilities.as_deref() {
        None => "not known: there is no /proc".to_owned(),
        Some([]) => "none".to_owned(),
        Some(names) => names.join(" "),
    };
    output::line(format_args!("Capabilities : {capabilities}"));
    output::line("");
    let rows = packet_rows(&status.kernel, &status.userspace);
    output::table(["PACKETS", "KERNEL", "USERSPACE"], rows, "no packets yet");
    output::counts(["REFUSED BY CONTROL", "TIMES"], &status.control);
    Ok(())
}

/// One row for each reason that has been counted anywhere.
fn packet_rows(kernel: &BTreeMap<String, u64>, userspace: &BTreeMap<String, u64>) -> Vec<[String; 3]> {
    let mut names: Vec<&String> = kernel.keys().chain(userspace.keys()).collect();
    names.sort();
    names.dedup();
    let count = |counts: &BTreeMap<String, u64>, name: &String| counts.get(name).copied().unwrap_or(0);
    names
        .into_iter()
        .map(|name| (name, count(kernel, name), count(userspace, name)))
        .filter(|(_, kernel, userspace)| kernel + userspace > 0)
        .map(|(name, kernel, userspace)| [name.clone(), kernel.to_string(), userspace.to_string()])
        .collect()
}
