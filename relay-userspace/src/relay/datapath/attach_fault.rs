//! Why an interface does not take the program: who holds its hook, and how to free it.

use std::io;

use super::netlink::Netlink;
use super::program::{Hook, PROGRAM, Port};

/// What went wrong, in words an operator can act on.
pub fn attach_fault(error: &io::Error, port: &Port) -> String {
    match error.raw_os_error() {
        // EEXIST: one is attached at the other hook, native or generic.
        Some(libc::EBUSY | libc::EEXIST) => taken(holder(port), &port.name),
        Some(libc::EOPNOTSUPP) => "its driver has no XDP support of this kind: use xdp-generic".into(),
        Some(libc::EPERM) => "not permitted: it needs root or CAP_BPF and CAP_NET_ADMIN".into(),
        Some(libc::ENODEV) => "there is no such interface".into(),
        Some(libc::EINVAL) => "the kernel gives no link to it: Linux 5.18 or later is needed".into(),
        _ => error.to_string(),
    }
}

/// A program that holds an interface's hook.
struct Holder {
    /// For CAP_SYS_ADMIN only.
    name: Option<String>,
    id: u32,
    hook: Hook,
}

/// Who holds an interface's hook, as far as the kernel tells.
fn holder(port: &Port) -> Option<Holder> {
    let held = Netlink::open().ok()?.link(port.index).ok()??.xdp?;
    let name = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == held.id)
        .and_then(|program| program.name_as_str().map(str::to_owned));
    Some(Holder { name, id: held.id, hook: held.hook })
}

/// What holds the hook of `interface`, and how to free it.
fn taken(holder: Option<Holder>, interface: &str) -> String {
    let is_ours = holder.as_ref().is_some_and(|holder| holder.name.as_deref() == Some(PROGRAM));
    let who = match holder {
        Some(Holder { name, id, hook }) => {
            let named = name.map(|name| format!("`{name}`, ")).unwrap_or_default();
            format!("{named}program {id} at the hook of {}", hook.name())
        }
        None => "the kernel does not say which".to_owned(),
    };
    if is_ours {
        format!(
            "this program is attached to it already: {who}; either another atlas-relay runs on {interface} (one relay an \
             interface): stop it; or `xdp load` has left it there: `atlas-relay xdp unload --interface {interface}`"
        )
    } else {
        format!(
            "another XDP program is attached to it: {who}; detach it with the tool that attached it: `ip link set dev \
             {interface} xdp off` if that was ip; one that is held by a link (`bpftool link` lists them) only its owner \
             can detach"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(name: Option<&str>) -> String {
        taken(Some(Holder { name: name.map(str::to_owned), id: 12, hook: Hook::Native }), "eth0")
    }

    #[test]
    fn a_hook_that_our_own_program_holds_is_told_from_a_strangers() {
        let ours = held_by(Some(PROGRAM));
        assert!(ours.contains("`relay`, program 12 at the hook of xdp-native"), "{ours}");
        assert!(ours.contains("another atlas-relay runs on eth0"), "{ours}");
        assert!(ours.contains("`atlas-relay xdp unload --interface eth0`"), "{ours}");
        assert!(!ours.contains("ip link"), "the kernel would refuse: {ours}");
        for strangers in [held_by(Some("xdp_firewall")), held_by(None), taken(None, "eth0")] {
            assert!(strangers.contains("`ip link set dev eth0 xdp off`"), "{strangers}");
            assert!(strangers.contains("only its owner"), "{strangers}");
            assert!(!strangers.contains("atlas-relay"), "{strangers}");
        }
    }
}
