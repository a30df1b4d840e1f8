//! What is looked at, how bad it can be, what is expected and what mends it: one closed list, used by the findings, their JSON,
//! `doctor --list` and documents.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As expected.
    Ok,
    /// Worth knowing; the relay works.
    Note,
    /// The relay works, and not as well or for as many as it could.
    Warning,
    /// The relay does not start, or nobody reaches it.
    Error,
}

impl Level {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }

    /// What `doctor` exits with if this is the worst finding.
    pub const fn exit_code(self) -> u8 {
        match self {
            Level::Ok | Level::Note => 0,
            Level::Warning => 1,
            Level::Error => 2,
        }
    }
}

macro_rules! checks {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $worst:ident, $expected:literal, $mend:literal;)+) => {
        /// Something that is looked at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Check {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Check {
            /// All of them, in the order in which they are told.
            pub const ALL: &'static [Check] = &[$(Check::$variant,)+];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Check::$variant => $name,)+ }
            }

            /// What is looked at.
            pub const fn about(self) -> &'static str {
                match self { $(Check::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }

            /// How bad it can be.
            pub const fn worst(self) -> Level {
                match self { $(Check::$variant => Level::$worst,)+ }
            }

            /// What is expected.
            pub const fn expected(self) -> &'static str {
                match self { $(Check::$variant => $expected,)+ }
            }

            /// What mends it, with names in braces for what differs; nothing if there is nothing to mend.
            pub const fn mend(self) -> &'static str {
                match self { $(Check::$variant => $mend,)+ }
            }
        }
    };
}

checks! {
    /// Which datapath packets take, and why that one.
    Datapath = "datapath", Warning, "xdp-native",
        "see the findings below with level warning or error";
    /// The node's key.
    Identity = "identity", Error, "a key that only its owner can read", "atlas-relay id init";
    /// The configuration file.
    Configuration = "configuration", Error, "a sound file that makes a relay", "atlas-relay config check";
    /// Whether this binary has the XDP program in it.
    Program = "program", Warning, "a binary that was built with the XDP program", "cargo xtask build";
    /// The kernel's version, its type information (BTF), and what it has of BPF.
    Kernel = "kernel", Warning, "Linux 5.18 or later: links, the coarse clock and frames in parts for XDP programs",
        "install a later kernel, or set datapath.mode = \"userspace\"";
    /// The compiler for BPF programs.
    Jit = "jit", Warning, "net.core.bpf_jit_enable = 1", "sysctl -w net.core.bpf_jit_enable=1";
    /// Whether programs without privilege may use BPF: the relay needs none of that.
    UnprivilegedBpf = "unprivileged_bpf", Note, "kernel.unprivileged_bpf_disabled = 1 or 2",
        "sysctl -w kernel.unprivileged_bpf_disabled=1";
    /// The capabilities of the caller, by which some findings can tell or not; the unit gives the relay its own.
    Capabilities = "capabilities", Note, "cap_bpf, cap_net_admin and cap_perfmon",
        "sudo ATLAS_ROOT={root} atlas-relay doctor";
    /// The capabilities that the relay's unit gives it.
    UnitCapabilities = "unit_capabilities", Warning, "cap_bpf, cap_net_admin and cap_perfmon",
        "systemctl edit atlas-relay   # [Service] AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON";
    /// How much memory may be locked, which kernels before 5.11 charge BPF maps to.
    Memlock = "memlock", Warning, "no limit, or a kernel of 5.11 or later",
        "systemctl edit atlas-relay   # [Service] LimitMEMLOCK=infinity";
    /// Where flows are kept while no daemon runs and systemd keeps none.
    Bpffs = "bpffs", Note, "datapath.bpffs in a mounted bpffs", "mount -t bpf -o mode=0711 bpf /sys/fs/bpf";
    /// Who can use the directory of the pins.
    BpffsOwner = "bpffs_owner", Note, "a directory of the relay's user",
        "install -d -m 0700 -o {user} {directory}";
    /// The interfaces that the program is attached to.
    Interface = "interface", Error, "interfaces that are there, up and speak Ethernet",
        "ip -brief link   # then set datapath.interfaces in {config}";
    /// What the interface's driver can do with XDP programs.
    Driver = "driver", Warning, "a driver that runs XDP programs and takes redirected frames",
        "set datapath.mode = \"xdp-generic\" in {config}";
    /// Other XDP programs on the interface.
    OtherProgram = "other_program", Warning, "no XDP program but the relay's", "ip link set dev {interface} xdp off";
    /// The largest packet that the interface takes.
    Mtu = "mtu", Warning, "1280 to 9216 bytes", "ip link set dev {interface} mtu 1500";
    /// Received packets that are merged before XDP sees them.
    ReceiveMerging = "receive_merging", Warning, "rx-lro and rx-gro-hw off",
        "ethtool -K {interface} lro off rx-gro-hw off";
    /// Tags of VLANs that the card takes off before XDP sees them.
    VlanOffload = "vlan_offload", Warning, "rx-vlan-hw-parse off where VLANs are on the interface",
        "ethtool -K {interface} rxvlan off";
    /// Receive queues, each of which one CPU works on.
    Queues = "queues", Note, "as many receive queues as CPUs", "ethtool -L {interface} combined {cpus}";
    /// Room in front of a frame; becoming IPv6 takes 20 bytes of it.
    Headroom = "headroom", Note, "20 bytes or more", "";
    /// Chains of nftables that packets to this host go through, and what their rules do with the relay's port.
    Firewall = "firewall", Warning, "none that keeps the relay's port out",
        "nft insert rule {family} {table} {chain} udp dport {port} accept   # and in the file that they are loaded from";
    /// ufw's rules.
    Ufw = "ufw", Warning, "not enabled, or a rule for the relay's port", "ufw allow {port}/udp";
    /// firewalld.
    Firewalld = "firewalld", Warning, "not running, or the relay's port open",
        "firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload";
    /// The table of connections, which a flood of strangers' packets to the port can fill.
    Conntrack = "conntrack", Warning, "not in use, or the relay's port not tracked",
        "sed s/4433/{port}/ /usr/share/doc/atlas-relay/deploy/firewall/nftables.conf | nft -f -   # deploy/firewall/nftables.conf";
    /// The host's clock, which handshakes compare.
    Clock = "clock", Warning, "synchronised", "timedatectl set-ntp true";
    /// How much a socket may hold of what is not read yet.
    ReceiveBuffer = "receive_buffer", Warning, "net.core.rmem_max of {wanted} bytes or more",
        "sysctl -w net.core.rmem_max={wanted}";
    /// The addresses that agents are told to send to.
    Advertise = "advertise", Warning, "addresses that agents reach this host at",
        "set network.advertise = [\"PUBLIC_ADDRESS:{port}\"] in {config}";
    /// The relay's UDP port.
    Port = "port", Error, "free, or held by the running relay",
        "ss --udp --listening --numeric --processes 'sport = :{port}'";
    /// Agents that are connected from elsewhere: the proof that this relay is reachable.
    Reached = "reached", Note, "agents connected from other hosts",
        "atlas-relay doctor --from {node}@PUBLIC_ADDRESS:{port}   # on another host";
    /// The relay named by --from, seen from here: QUIC and the handshake, an announcement, a pairing, binding and one datagram.
    Peer = "peer", Error, "two agents started here exchange a datagram through it",
        "atlas-relay doctor   # on the relay's host";
    /// Whether who is named by --from reaches this relay: another relay is asked to connect back to the address that it sees, an
    /// agent to open a new connection to where it has one.
    Reachable = "reachable", Error, "this node answers at its UDP port, as seen from there",
        "let UDP {port} in to this host wherever it is kept out on the way: a provider's firewall, a router's port forwarding";
    /// One datagram through the real hook, between two virtual interfaces made for it.
    SelfTest = "self_test", Warning, "the datagram rewritten and its checksums right",
        "sudo ATLAS_ROOT={root} atlas-relay doctor";
}

/// What was found of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// The interface that it is about.
    pub interface: Option<String>,
    /// What was found.
    pub found: String,
    /// What was expected.
    pub expected: String,
    /// What mends it; none where there is nothing to mend.
    pub mend: Option<String>,
}

/// What stands in the place of a name in braces.
pub type Value<'v> = (&'static str, &'v str);

impl Check {
    /// It is as expected.
    pub fn ok(self, found: impl Into<String>) -> Finding {
        self.at(Level::Ok, found, &[])
    }

    /// It is at `level`; `values` stand in for the names in the command.
    pub fn at(self, level: Level, found: impl Into<String>, values: &[Value<'_>]) -> Finding {
        let fill = |text: &str| {
            values
                .iter()
                .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
        };
        let mend = (level > Level::Ok && !self.mend().is_empty()).then(|| fill(self.mend()));
        Finding {
            check: self.name(),
            level,
            interface: values
                .iter()
                .find(|(name, _)| *name == "interface")
                .map(|(_, name)| (*name).to_owned()),
            found: found.into(),
            expected: fill(self.expected()),
            mend,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_stable_words_of_their_own() {
        let names: HashSet<_> = Check::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), Check::ALL.len());
        for check in Check::ALL {
            let plain = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            assert!(plain(check.name()) && !check.about().is_empty() && !check.expected().is_empty());
            assert!(check.worst() > Level::Ok, "{}", check.name());
        }
    }

    #[test]
    fn a_command_is_filled_in_and_only_said_where_something_is_to_be_mended() {
        let finding = Check::OtherProgram.at(Level::Warning, "one", &[("interface", "eth0")]);
        assert_eq!(finding.mend.as_deref(), Some("ip link set dev eth0 xdp off"));
        assert_eq!(finding.interface.as_deref(), Some("eth0"));
        assert_eq!(Check::OtherProgram.ok("none").mend, None);
        assert_eq!(Check::Headroom.at(Level::Note, "unknown", &[]).mend, None);
    }

    #[test]
    fn the_worst_finding_decides_what_is_exited_with() {
        let codes = [Level::Ok, Level::Note, Level::Warning, Level::Error].map(Level::exit_code);
        assert_eq!(codes, [0, 0, 1, 2]);
        assert!(Level::Ok < Level::Note && Level::Note < Level::Warning && Level::Warning < Level::Error);
    }
}
