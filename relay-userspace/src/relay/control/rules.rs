//! By what rules connections are let in: what the operator has configured, as it is now, and who is banned.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::places::Limits;
use crate::config::Config;
use crate::relay::access;
use crate::relay::bans::Bans;
use crate::relay::rendezvous::Access;

/// What is configured about control connections. All of it may change while the relay runs; what has been let in stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPolicy {
    /// `transport.max_connections` and `quotas.connections_per_prefix`.
    pub connections: Limits,
    /// `quotas.pending_handshakes` and `security.handshake_limit`.
    pub handshakes: Limits,
    /// `security.max_clock_drift_secs`.
    pub max_clock_drift: Duration,
    /// `security.ban_duration_secs`.
    pub ban_duration: Duration,
    /// `rate_limit.per_peer_per_minute`: control messages of one agent; 0: unlimited.
    pub messages_per_minute: u32,
    /// `quotas.message_bytes`: the largest message taken.
    pub message_bytes: usize,
    /// `quotas.connection_bytes`: what one connection may make us hold before it is dealt with.
    pub connection_bytes: usize,
    /// Who may connect at all.
    pub access: Access,
}

impl ControlPolicy {
    /// What `config` says.
    pub fn of(config: &Config) -> ControlPolicy {
        let Config { transport, security, quotas, rate_limit, .. } = config;
        ControlPolicy {
            connections: Limits {
                all: transport.max_connections,
                per_prefix: quotas.connections_per_prefix as usize,
            },
            handshakes: Limits {
                all: quotas.pending_handshakes as usize,
                per_prefix: security.handshake_limit as usize,
            },
            max_clock_drift: security.max_clock_drift,
            ban_duration: security.ban_duration,
            messages_per_minute: rate_limit.per_peer_per_minute,
            message_bytes: quotas.message_bytes as usize,
            connection_bytes: quotas.connection_bytes as usize,
            access: access(config),
        }
    }
}

/// The rules in effect. The listener goes by them; the driver changes them.
#[derive(Debug)]
pub struct Rules {
    policy: Mutex<Arc<ControlPolicy>>,
    bans: Mutex<Bans>,
}

impl Rules {
    /// `policy`, and nobody is banned.
    pub fn new(policy: ControlPolicy) -> Rules {
        let bans = Mutex::new(Bans::new(policy.ban_duration));
        Rules { policy: Mutex::new(Arc::new(policy)), bans }
    }

    /// What is configured now.
    pub fn policy(&self) -> Arc<ControlPolicy> {
        Arc::clone(&lock(&self.policy))
    }

    /// Another policy, for all that comes from now on.
    pub fn set_policy(&self, policy: ControlPolicy) {
        self.bans().set_duration(policy.ban_duration);
        *lock(&self.policy) = Arc::new(policy);
    }

    /// Who is banned, locked for a moment.
    pub fn bans(&self) -> MutexGuard<'_, Bans> {
        lock(&self.bans)
    }
}

/// A poisoned lock is used on: what it protects is sound after any step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AtlasRoot;
    use crate::identity::NodeId;

    fn policy(allow: &[u8], deny: &[u8]) -> ControlPolicy {
        let root = AtlasRoot::at("/atlas");
        let config = Config::parse("", "config.toml".as_ref(), &root).unwrap();
        let ids = |seeds: &[u8]| seeds.iter().map(|seed| NodeId::from_bytes([*seed; 32])).collect();
        let access = Access { allow: ids(allow), deny: ids(deny) };
        ControlPolicy { access, ..ControlPolicy::of(&config) }
    }

    #[test]
    fn who_is_denied_is_so_whether_allowed_or_not_and_without_a_list_everyone_else_is_admitted() {
        let [one, two] = [1, 2].map(|seed| NodeId::from_bytes([seed; 32]));
        for (allow, deny, admitted) in [
            (&[][..], &[][..], [true, true]),
            (&[], &[1], [false, true]),
            (&[1], &[], [true, false]),
            (&[1, 2], &[1], [false, true]),
        ] {
            let policy = policy(allow, deny);
            assert_eq!([one, two].map(|node| policy.access.permits(&node)), admitted, "{allow:?} {deny:?}");
        }
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let policy = policy(&[], &[]);
        assert_eq!(
            (policy.handshakes, policy.messages_per_minute),
            (Limits { all: 1024, per_prefix: 50 }, 120)
        );
        assert_eq!((policy.message_bytes, policy.connection_bytes), (64 << 10, 256 << 10));
        assert_eq!(policy.ban_duration, Duration::from_secs(3600));
    }

    #[test]
    fn a_changed_policy_is_seen_by_who_asks_next_and_by_the_bans() {
        let rules = Rules::new(policy(&[], &[]));
        let before = rules.policy();
        rules.set_policy(ControlPolicy {
            messages_per_minute: 7,
            ban_duration: Duration::ZERO,
            ..policy(&[], &[])
        });
        assert_eq!((before.messages_per_minute, rules.policy().messages_per_minute), (120, 7));
        let node = NodeId::from_bytes([1; 32]);
        let banned = (0..9).any(|_| {
            rules.bans().violation(
                node,
                crate::relay::rendezvous::Refusal::BadFrame,
                crate::clock::MonoTime(1),
            )
        });
        assert!(!banned);
    }
}
