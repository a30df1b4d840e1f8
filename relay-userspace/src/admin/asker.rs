//! Who asks, and what they may ask.

use std::io;
use std::os::fd::AsFd as _;

use rustix::process::{getegid, geteuid};
use tokio::net::UnixStream;

use super::Request;
use super::peer_groups::peer_groups;

/// Who is at the other end of a connection, by what the kernel says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub user: u32,
    /// All group ids.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// Those of the process that has connected, as of then.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn of_peer(stream: &UnixStream) -> io::Result<Credentials> {
        let peer = stream.peer_cred()?;
        let mut groups = peer_groups(stream.as_fd())?;
        groups.push(peer.gid());
        Ok(Credentials { user: peer.uid(), groups })
    }
}

/// Whose daemon it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

impl Owner {
    /// This process's.
    pub fn of_process() -> Owner {
        Owner { user: geteuid().as_raw(), group: getegid().as_raw() }
    }

    /// Whether it is `asker`, or root.
    pub fn is(self, asker: &Credentials) -> bool {
        asker.user == 0 || asker.user == self.user
    }

    /// Whether `asker` may ask for `request`: its owner and root for anything, its group for what changes nothing.
    ///
    /// # Errors
    /// Who may, for people.
    pub fn permits(self, asker: &Credentials, request: &Request) -> Result<(), String> {
        let Owner { user, group } = self;
        if self.is(asker) {
            return Ok(());
        }
        if !asker.groups.contains(&group) {
            return Err(format!(
                "user {} may not ask this daemon: only root, its own user (uid {user}) and members of its group (gid {group}) may",
                asker.user
            ));
        }
        if matches!(request, Request::Explain { .. }) {
            return Err(format!(
                "user {} may not ask what becomes of a packet: only root and the daemon's own user (uid {user}) may",
                asker.user
            ));
        }
        if request.changes() {
            return Err(format!(
                "user {} may look but not change anything: only root and the daemon's own user (uid {user}) may",
                asker.user
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::AskedPacket;
    use super::*;
    use crate::identity::NodeId;

    const DAEMON: Owner = Owner { user: 990, group: 991 };

    fn may(user: u32, groups: &[u32], request: &Request) -> bool {
        DAEMON.permits(&Credentials { user, groups: groups.to_vec() }, request).is_ok()
    }

    #[test]
    fn root_and_the_daemons_user_may_everything_its_group_may_look_and_others_nothing() {
        let look = [Request::Peers, Request::Sessions, Request::Status, Request::Settings, Request::Bans];
        let node = NodeId::from_bytes([1; 32]);
        let change = [
            Request::Reload,
            Request::Stop,
            Request::Drain { deadline_s: None, hint: None },
            Request::EndSessionsOf { node },
            Request::Probe { agent: node },
            Request::Explain {
                source: "192.0.2.1:1".parse().unwrap(),
                destination: "192.0.2.2:4433".parse().unwrap(),
                packet: AskedPacket::PayloadBytes(1),
            },
        ];
        for request in look.iter().chain(&change) {
            assert!(may(0, &[0], request) && may(990, &[5], request), "{request:?}");
            assert!(!may(1000, &[1000, 27], request), "{request:?}");
        }
        assert!(look.iter().all(|request| may(1000, &[1000, 991], request)));
        assert!(!change.iter().any(|request| may(1000, &[1000, 991], request)));
    }

    #[test]
    fn a_refusal_says_who_may() {
        let said = |groups: &[u32]| {
            let asker = Credentials { user: 1000, groups: groups.to_vec() };
            DAEMON.permits(&asker, &Request::Reload).unwrap_err()
        };
        assert!(said(&[]).contains("user 1000") && said(&[]).contains("gid 991"), "{}", said(&[]));
        assert!(said(&[991]).contains("uid 990") && !said(&[991]).contains("gid"), "{}", said(&[991]));
    }

    #[tokio::test]
    async fn the_kernel_says_who_has_connected() {
        let (one, _other) = UnixStream::pair().unwrap();
        let seen = Credentials::of_peer(&one).unwrap();
        let own = Owner::of_process();
        assert_eq!(seen.user, own.user);
        assert!(seen.groups.contains(&own.group), "{seen:?}");
        let supplementary: Vec<u32> =
            rustix::process::getgroups().unwrap().into_iter().map(rustix::process::Gid::as_raw).collect();
        assert!(supplementary.iter().all(|group| seen.groups.contains(group)), "{seen:?}");
    }
}
