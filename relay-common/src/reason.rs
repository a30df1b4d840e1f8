//! Why a packet went where it went: one closed list, used by the program, the forwarder, metrics, logs and documents.

/// What happens to a packet, by its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Rewritten and sent to the other agent.
    Forward,
    /// Left as it was and handed up: to the kernel's stack by the program, to QUIC by the forwarder.
    Pass,
    /// Discarded.
    Drop,
    /// Discarded because the program found itself in a state that must not occur.
    Abort,
}

impl Action {
    /// The name used by listings and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Forward => "forward",
            Action::Pass => "pass",
            Action::Drop => "drop",
            Action::Abort => "abort",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $action:ident;)+) => {
        /// The outcome of one packet. Each packet that enters the packet path gets exactly one.
        ///
        /// The discriminant is the index of its counters. New reasons go to the end, so that an index keeps its
        /// meaning while counters outlive a program.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];

            /// How many there are.
            pub const COUNT: usize = Reason::ALL.len();

            /// The name used by counters, metrics, logs and documents.
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name,)+ }
            }

            /// What it means, in a sentence or two.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }

            /// What happens to such a packet.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Reason::$variant => Action::$action,)+ }
            }
        }
    };
}

reasons! {
    /// Rewritten and sent to the other agent of its session.
    Forwarded = "forwarded", Forward;
    /// No session has this source and destination: control traffic, other services of the host, or a stranger.
    NoFlow = "no_flow", Pass;
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip", Pass;
    /// IP, but not UDP.
    NotUdp = "not_udp", Pass;
    /// Shorter than its headers.
    Truncated = "truncated", Pass;
    /// The IP version or header length field is not one that exists.
    Malformed = "malformed", Pass;
    /// The IPv4 header carries options: the userspace forwarder handles these.
    IpOptions = "ip_options", Pass;
    /// A fragment: the kernel reassembles it, the userspace forwarder relays the whole.
    Fragment = "fragment", Pass;
    /// The length fields of the IP and UDP headers and the frame disagree.
    LengthMismatch = "length_mismatch", Pass;
    /// Larger than the MTU of the interface it came by: several packets merged into one by receive offload.
    SuperFrame = "super_frame", Pass;
    /// Its TTL or hop limit would reach zero.
    TtlExpiring = "ttl_expiring", Pass;
    /// Carries more than one VLAN tag, one that names no VLAN, or the tag of another VLAN than it would leave by.
    VlanTagged = "vlan_tagged", Pass;
    /// IPv6 with headers between the IPv6 and the UDP header: the userspace forwarder handles these.
    ExtensionHeader = "extension_header", Pass;
    /// No UDP checksum where IPv6 needs one: sent as IPv6 without, or to become IPv6.
    ZeroChecksum = "zero_checksum", Pass;
    /// Addressed to another station than this interface.
    OtherStation = "other_station", Pass;
    /// Came by an interface that the tables do not describe.
    UnknownInterface = "unknown_interface", Pass;
    /// A bind datagram: handed up for the daemon to answer.
    Bind = "bind", Pass;
    /// Begins with the bind magic but has not the length of a bind datagram.
    BindMalformed = "bind_malformed", Drop;
    /// The session changed while the packet was being looked at.
    FlowChanged = "flow_changed", Pass;
    /// A side of the session has not proved its tuple lately.
    ConsentExpired = "consent_expired", Pass;
    /// The link-layer address of the next hop is not known: the stack resolves it.
    HopUnresolved = "hop_unresolved", Pass;
    /// Larger than the MTU of the interface it would leave by.
    TooBig = "too_big", Pass;
    /// Over the session's bandwidth limit.
    Limited = "limited", Drop;
    /// Lost the race for the session's bucket eight times in a row.
    Contended = "contended", Drop;
    /// The frame could not be written after the decision to write it.
    CommitFailed = "commit_failed", Abort;
    /// The forwarder's queue towards QUIC was full.
    QuicQueueFull = "quic_queue_full", Drop;
    /// The queue of bind datagrams was full.
    BindQueueFull = "bind_queue_full", Drop;
    /// Sending failed: no buffers, or the destination is administratively prohibited.
    SendFailed = "send_failed", Drop;
    /// Sending failed: larger than the path takes.
    SendTooBig = "send_too_big", Drop;
    /// Sending failed: the destination cannot be reached.
    SendUnreachable = "send_unreachable", Drop;
    /// Its TTL or hop limit reached zero at the forwarder.
    TtlExpired = "ttl_expired", Drop;
    /// Carries no VLAN tag, and would leave by a VLAN.
    VlanMissing = "vlan_missing", Pass;
    /// Its UDP checksum covers no more than the pseudo header: left to hardware that it has not met, on a virtual network.
    UnfinishedChecksum = "unfinished_checksum", Pass;
    /// Of a session, but like the beginning of a control connection, and more of them than its side may send; or met
    /// control's queue full while such a side was kept out.
    ControlShare = "control_share", Drop;
}

impl Reason {
    /// The place of its counters.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Action, Reason};
    use std::collections::HashSet;
    use std::string::String;

    #[test]
    fn every_reason_has_a_name_and_a_text_of_its_own() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        let texts: HashSet<_> = Reason::ALL.iter().map(|reason| reason.text()).collect();
        assert_eq!(names.len(), Reason::COUNT);
        assert_eq!(texts.len(), Reason::COUNT);
    }

    #[test]
    fn names_are_fit_for_metric_labels() {
        for reason in Reason::ALL {
            let fit: String = reason
                .name()
                .chars()
                .filter(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit())
                .collect();
            assert_eq!(fit, reason.name());
        }
    }

    #[test]
    fn the_index_of_a_reason_is_its_place_in_the_list() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, place);
        }
    }

    #[test]
    fn a_packet_of_no_session_is_never_dropped() {
        assert_eq!(Reason::NoFlow.action(), Action::Pass);
    }
}
