//! From what is known of a host to what is to be said of it. Pure: facts in, findings out.

mod interface;
mod network;

use super::check::{Check, Finding, Level};
use super::facts::{Facts, Kernel, SelfTest};
use crate::config::DatapathMode;

/// What the program needs: links to XDP programs, and helpers for frames in parts.
const FIRST_KERNEL: (u32, u32) = (5, 18);

/// The first kernel that says what drivers can do.
const TELLING_KERNEL: (u32, u32) = (6, 3);

/// The first kernel that does not charge maps to what may be locked.
const UNLOCKED_KERNEL: (u32, u32) = (5, 11);

/// What the program needs of a user.
const NEEDED: [&str; 3] = ["cap_bpf", "cap_net_admin", "cap_perfmon"];

/// All findings, in the order of [`Check::ALL`].
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    all.push(datapath(facts));
    all.push(match &facts.identity {
        Ok(id) => Check::Identity.ok(id),
        Err(why) => Check::Identity.at(Level::Error, why, &[]),
    });
    all.push(match facts.configuration {
        Ok("a relay") => Check::Configuration.ok(format!("{}: a relay's", facts.config.display())),
        Ok(role) => {
            let found =
                format!("{}: it makes {role}; what follows is about a relay here", facts.config.display());
            Finding { mend: None, ..Check::Configuration.at(Level::Note, found, &[]) }
        }
        Err(ref why) => Check::Configuration.at(Level::Error, why, &[]),
    });
    all.extend(of_host(facts));
    match &facts.interfaces {
        Ok(interfaces) if !interfaces.is_empty() => {
            interfaces.iter().for_each(|interface| all.extend(interface::findings(facts, interface)));
        }
        interfaces => {
            let found = match interfaces {
                Err(why) => why,
                Ok(_) => "no default route leads to one, and none is named",
            };
            let level = match facts.mode {
                DatapathMode::Userspace => Level::Note,
                DatapathMode::Auto if interfaces.is_ok() => Level::Warning,
                _ => Level::Error,
            };
            all.push(Check::Interface.at(level, found, &[("config", &facts.config.display().to_string())]));
        }
    }
    all.extend(network::findings(facts));
    all.extend(facts.peer.as_ref().map(|(peer, outcome)| match outcome {
        Ok(shown) => Check::Peer.ok(format!("{peer}: {shown}")),
        Err(why) => Check::Peer.at(Level::Error, format!("{peer}: {why}"), &[]),
    }));
    all.push(self_test(facts));
    let place = |finding: &Finding| Check::ALL.iter().position(|check| check.name() == finding.check);
    all.sort_by_key(place);
    all
}

/// Whether the XDP program is wanted at all.
fn wants_program(facts: &Facts) -> bool {
    facts.mode != DatapathMode::Userspace
}

/// `worst`, or a note where the datapath is userspace anyway.
fn if_program(facts: &Facts, worst: Level) -> Level {
    if wants_program(facts) { worst } else { Level::Note }
}

fn datapath(facts: &Facts) -> Finding {
    if let Some(running) = &facts.running {
        let found = format!("{}: the running relay's: {}", running.datapath, running.why);
        return match (running.datapath.as_str(), running.why.as_str()) {
            ("xdp-native", _) => Check::Datapath.ok(found),
            (_, "asked for") => asked_for(found),
            _ => Check::Datapath.at(Level::Warning, found, &[]),
        };
    }
    if !wants_program(facts) {
        return asked_for("userspace: asked for by datapath.mode".to_owned());
    }
    if let Some(obstacle) = obstacle(facts) {
        return Check::Datapath.at(Level::Warning, format!("userspace: {obstacle}"), &[]);
    }
    let interfaces = facts.interfaces.as_deref().unwrap_or_default();
    let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let names = names.join(" and ");
    if facts.mode == DatapathMode::XdpGeneric {
        return asked_for(format!("xdp-generic on {names}: asked for by datapath.mode"));
    }
    match interfaces.iter().find(|interface| !interface::may_be_native(interface)) {
        Some(slow) => {
            let found = format!("xdp-generic on {names}: the driver of {} runs no XDP programs", slow.name);
            Check::Datapath.at(Level::Warning, found, &[])
        }
        None if interfaces.iter().any(|interface| interface.xdp_features.is_none()) => Check::Datapath.at(
            Level::Note,
            format!("xdp-native on {names} if its driver can, else xdp-generic: this kernel cannot tell"),
            &[],
        ),
        None => Check::Datapath.ok(format!("xdp-native on {names}: nothing stands in its way")),
    }
}

/// Another datapath than the best, by choice: no other finding is about that.
fn asked_for(found: String) -> Finding {
    let mend = "none is needed; for another, change what asks for it: `datapath.mode` or `--datapath`";
    Finding { mend: Some(mend.to_owned()), ..Check::Datapath.at(Level::Note, found, &[]) }
}

/// What keeps the program from being loaded or attached at all.
fn obstacle(facts: &Facts) -> Option<String> {
    if !facts.has_program {
        return Some("this binary was built without the XDP program".to_owned());
    }
    if !facts.kernel.is_at_least(FIRST_KERNEL) {
        return Some(format!("Linux {} is too old for the program", facts.kernel.release));
    }
    match &facts.interfaces {
        Err(why) => Some(why.clone()),
        Ok(interfaces) if interfaces.is_empty() => Some("there is no interface to attach to".to_owned()),
        Ok(interfaces) => interfaces.iter().find_map(|interface| match interface.program {
            Some((id, false)) => Some(format!("program {id} is attached to {}", interface.name)),
            _ => None,
        }),
    }
}

fn of_host(facts: &Facts) -> Vec<Finding> {
    let Facts { kernel, .. } = facts;
    let root = facts.root.display().to_string();
    let program = match facts.has_program {
        true => Check::Program.ok("there"),
        false => {
            Check::Program.at(if_program(facts, Level::Warning), "not there: the datapath is userspace", &[])
        }
    };
    let btf = if kernel.btf { "with BTF" } else { "without BTF, which the program does not need" };
    let found = format!("Linux {}, {btf}", kernel.release);
    let of_kernel = match (kernel.is_at_least(FIRST_KERNEL), kernel.is_at_least(TELLING_KERNEL)) {
        (true, true) => Check::Kernel.ok(found),
        (true, false) => {
            let found = format!("{found}; before 6.3 it cannot say what drivers can do");
            Check::Kernel.at(Level::Note, found, &[])
        }
        (false, _) => Check::Kernel.at(if_program(facts, Level::Warning), found, &[]),
    };
    let jit = match kernel.jit {
        Some(0) => Check::Jit.at(if_program(facts, Level::Warning), "off: programs are interpreted", &[]),
        Some(_) => Check::Jit.ok("on"),
        None => Check::Jit.at(Level::Note, "cannot tell: net.core.bpf_jit_enable is not readable", &[]),
    };
    let unprivileged = match kernel.unprivileged_bpf_disabled {
        Some(0) => Check::UnprivilegedBpf.at(Level::Note, "any user may load some BPF programs", &[]),
        Some(_) => Check::UnprivilegedBpf.ok("disabled"),
        None => Check::UnprivilegedBpf.ok("this kernel has no such switch"),
    };
    let missing = missing(&facts.capabilities);
    let capabilities = if missing.is_empty() {
        Check::Capabilities.ok("the caller has all that the XDP program needs")
    } else {
        let found = format!("the caller lacks {}: some findings cannot tell", missing.join(", "));
        Check::Capabilities.at(Level::Note, found, &[("root", &root)])
    };
    let mut all = vec![program, of_kernel, jit, unprivileged, capabilities, memlock(facts, kernel)];
    all.extend(unit_capabilities(facts));
    all.extend(bpffs(facts));
    all
}

/// What is needed of these.
fn missing(held: &[String]) -> Vec<&'static str> {
    NEEDED.into_iter().filter(|name| !held.iter().any(|held| held == name)).collect()
}

fn unit_capabilities(facts: &Facts) -> Option<Finding> {
    let given = facts.unit_capabilities.as_ref()?;
    Some(match &missing(given)[..] {
        [] => {
            Check::UnitCapabilities.ok("atlas-relay.service gives the relay all that the XDP program needs")
        }
        missing => {
            let found = format!(
                "atlas-relay.service does not give the relay {}: the datapath is userspace",
                missing.join(", ")
            );
            Check::UnitCapabilities.at(if_program(facts, Level::Warning), found, &[])
        }
    })
}

fn memlock(facts: &Facts, kernel: &Kernel) -> Finding {
    match kernel.memlock {
        None => Check::Memlock.ok("no limit"),
        Some(bytes) if kernel.is_at_least(UNLOCKED_KERNEL) => {
            Check::Memlock.ok(format!("{bytes} bytes, which this kernel does not charge maps to"))
        }
        Some(bytes) => Check::Memlock.at(
            if_program(facts, Level::Warning),
            format!("{bytes} bytes for this caller"),
            &[],
        ),
    }
}

fn bpffs(facts: &Facts) -> Vec<Finding> {
    let Some(bpffs) = facts.bpffs.as_ref().filter(|_| wants_program(facts)) else { return Vec::new() };
    let directory = bpffs.directory.display().to_string();
    if !bpffs.mounted {
        let found = format!("{directory} is in no bpffs: without systemd a restart ends all sessions");
        return vec![Check::Bpffs.at(Level::Note, found, &[])];
    }
    let owner = bpffs.owner.map_or_else(|| "not known".to_owned(), |owner| owner.to_string());
    let found = format!("{directory}: its owner is user {owner}");
    let values = [("user", "atlas-relay"), ("directory", directory.as_str())];
    let usable = match bpffs.writable {
        true => Check::BpffsOwner.ok(format!("{found}; this caller may write there")),
        false => {
            Check::BpffsOwner.at(Level::Note, format!("{found}; this caller may not write there"), &values)
        }
    };
    vec![Check::Bpffs.ok(format!("{directory} is in a bpffs")), usable]
}

fn self_test(facts: &Facts) -> Finding {
    let root = facts.root.display().to_string();
    match &facts.self_test {
        SelfTest::Passed(shown) => Check::SelfTest.ok(shown),
        SelfTest::Failed(why) => {
            Check::SelfTest.at(if_program(facts, Level::Warning), why, &[("root", &root)])
        }
        SelfTest::NotRun(why) => {
            Check::SelfTest.at(Level::Note, format!("not run: {why}"), &[("root", &root)])
        }
    }
}

#[cfg(test)]
mod tests;
