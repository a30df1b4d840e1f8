//! The packet path in a network of its own: next hops follow the kernel's tables, and the forwarder meets real MTUs.
//!
//! Needs root, `ip` and `ethtool`: each test makes network namespaces, which go when its threads end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "in a test a panic is a failure, and a test that cannot run says why"
)]

mod namespaces;
mod skipping;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use relay_common::Reason;
use relay_common::next_hop::{Egress, Hop, station_words};
use relay_userspace::clock::MonoTime;
use relay_userspace::relay::datapath::{
    FlowTable, FlowTuple, Flows, Hook, HopArray, HopId, HopKey, Limit, Netlink, NetworkChange, NetworkEvents,
    NextHops, NoRoutes, Origin, TableSizes, Tables,
};
use relay_userspace::relay::forwarder::{Forwarder, Merging, RelayPort};

use namespaces::{Inside, addr, in_namespace, ip, run, until_counted};

const MAGIC: [u8; 8] = [0x2a, 1, 2, 3, 4, 5, 6, 7];

#[test]
fn next_hops_follow_the_kernels_tables() {
    in_namespace("next_hops_follow_the_kernels_tables", || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            ip("link set lo up");
            ip("link add up0 type veth peer name down0");
            ip("link set up0 address 02:00:00:00:00:01 up");
            ip("link set down0 up");
            ip("address add 192.0.2.1/24 dev up0");
            let (agent, relay) = (addr("198.51.100.7"), addr("192.0.2.1"));

            let mut network = Network::open();
            let up0 = network.interface("up0");
            network.hops.set_ingress(BTreeMap::from([(up0, Hook::Generic)]));
            assert_eq!(network.hops.hop_for(agent, relay), HopId::USERSPACE, "there is no route");
            assert_eq!(
                network.hops.hop_for(relay, relay),
                HopId::USERSPACE,
                "the relay itself is no next hop"
            );

            ip("neighbour add 192.0.2.254 lladdr 02:00:00:00:00:fe nud permanent dev up0");
            ip("route add default via 192.0.2.254");
            network.until_routes_changed().await;
            let hop = network.hops.hop_for(agent, relay);
            let own = [2, 0, 0, 0, 0, 1];
            let expected = Hop {
                egress: Egress::Transmit,
                interface: up0,
                mtu: 1500,
                stations: station_words([2, 0, 0, 0, 0, 0xfe], own),
                vlan: 0,
            };
            assert_eq!(network.written(hop), Some(expected));
            assert_eq!(network.hops.hop_for(addr("203.0.113.9"), relay), hop, "the same gateway");

            ip("neighbour replace 192.0.2.254 lladdr 02:00:00:00:00:fd nud reachable dev up0");
            let stations = station_words([2, 0, 0, 0, 0, 0xfd], own);
            network.until(hop, |written| written.stations == stations).await;
            ip("neighbour replace 192.0.2.254 lladdr 02:00:00:00:00:fd nud stale dev up0");
            let asked = || String::from_utf8(run("ip", "neighbour show 192.0.2.254 dev up0")).unwrap();
            network.until_change(|_| !asked().contains("STALE")).await;
            assert!(network.written(hop).unwrap().egress == Egress::Transmit, "{}", asked());

            ip("link set up0 mtu 1400");
            network.until(hop, |written| written.mtu == 1400).await;
            ip("link set up0 address 02:00:00:00:00:09");
            network.until(hop, |written| written.egress == Egress::Userspace).await; // it forgets its neighbours
            ip("neighbour replace 192.0.2.254 lladdr 02:00:00:00:00:fd nud reachable dev up0");
            let stations = station_words([2, 0, 0, 0, 0, 0xfd], [2, 0, 0, 0, 0, 9]);
            network.until(hop, |written| written.stations == stations).await;

            ip("neighbour replace 192.0.2.253 lladdr 02:00:00:00:00:fc nud permanent dev up0");
            ip("route replace default via 192.0.2.253");
            network.until_routes_changed().await;
            let other = network.hops.hop_for(agent, relay);
            assert_ne!(other, hop, "another gateway");
            network.hops.release(hop);
            network.hops.release(hop);
            assert_eq!(network.written(hop).unwrap().egress, Egress::Userspace, "given back");

            ip("link set up0 down");
            network.until(other, |written| written.egress == Egress::Userspace).await;
            ip("link set up0 up");
            ip("neighbour replace 192.0.2.253 lladdr 02:00:00:00:00:fc nud permanent dev up0");
            network.until(other, |written| written.egress == Egress::Transmit).await;
            ip("route replace default via 192.0.2.253");
            network.until_routes_changed().await;
            assert_eq!(network.hops.hop_for(agent, relay), other);

            ip("neighbour del 192.0.2.253 dev up0");
            network.until(other, |written| written.egress == Egress::Userspace).await;
        });
    });
}

#[test]
fn an_address_whose_lifetime_alone_changes_asks_for_nothing() {
    in_namespace("an_address_whose_lifetime_alone_changes_asks_for_nothing", || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            ip("link add up0 type veth peer name down0");
            for link in ["up0", "down0"] {
                // Without an address of its own making, which would be announced at a time of its own.
                ip(&format!("link set {link} addrgenmode none"));
                ip(&format!("link set {link} up"));
            }
            let mut network = Network::open();
            let lives = |seconds: u32| {
                for address in ["192.0.2.1/24 dev up0", "2001:db8::1/64 dev up0 nodad"] {
                    ip(&format!("address replace {address} valid_lft {seconds} preferred_lft {seconds}"));
                }
            };
            lives(600);
            network.until_change(|change| change.addresses).await;
            network.asked_for_until_a_neighbour_is_added("192.0.2.7").await;
            for seconds in [900, 1200] {
                lives(seconds);
            }
            let asked = network.asked_for_until_a_neighbour_is_added("192.0.2.8").await;
            assert!(asked.iter().all(|change| !change.addresses && !change.routes), "{asked:?}");
            ip("address add 192.0.2.2/24 dev up0");
            ip("address add 2001:db8::2/64 dev up0 nodad");
            let asked = network.asked_for_until_a_neighbour_is_added("192.0.2.9").await;
            assert!(asked.iter().any(|change| change.addresses), "{asked:?}");
            ip("address del 2001:db8::2/64 dev up0");
            network.until_change(|change| change.addresses).await;
        });
    });
}

#[test]
fn a_native_veth_is_redirected_to_only_while_its_peer_is_ready() {
    in_namespace("a_native_veth_is_redirected_to_only_while_its_peer_is_ready", || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            ip("link add up0 type veth peer name down0");
            ip("link set up0 up");
            ip("link set down0 up");
            ip("address add 192.0.2.1/24 dev up0");
            ip("neighbour add 192.0.2.7 lladdr 02:00:00:00:00:07 nud permanent dev up0");
            let mut network = Network::open();
            let up0 = network.interface("up0");
            network.hops.set_ingress(BTreeMap::from([(up0, Hook::Native)]));
            let hop = network.hops.hop_for(addr("192.0.2.7"), addr("192.0.2.1"));
            assert_ne!(hop, HopId::USERSPACE);
            assert_eq!(network.written(hop), None, "without NAPI at its peer it would lose every packet");
            if kernel_version() < (6, 3) {
                return; // It cannot say, and the hop stays with userspace.
            }
            run("ethtool", "-K down0 gro on");
            network.until(hop, |written| written.egress == Egress::Redirect).await;
            run("ethtool", "-K down0 gro off");
            network.until(hop, |written| written.egress == Egress::Userspace).await;
        });
    });
}

#[test]
fn the_kernels_facts_are_read() {
    in_namespace("the_kernels_facts_are_read", || {
        ip("link set lo up");
        ip("link add up0 type veth peer name down0");
        ip("link set up0 address 02:00:00:00:00:01 mtu 1280 up");
        ip("link set down0 up");
        ip("link add br0 type bridge");
        ip("address add 192.0.2.1/24 dev up0");
        ip("address add 2001:db8::1/64 dev up0 nodad");
        ip("route add unreachable 198.51.100.0/24");
        ip("route add blackhole 203.0.113.0/24");
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        let up0 = named("up0");
        assert_eq!((up0.mac, up0.mtu, up0.up, up0.veth), (Some([2, 0, 0, 0, 0, 1]), 1280, true, true));
        assert_eq!(up0.xdp, None);
        assert!(!named("br0").veth && !named("br0").up);
        assert_eq!(netlink.link(up0.index).unwrap().as_ref(), Some(up0));
        assert_eq!(netlink.link(9999).unwrap(), None);
        let addresses = netlink.addresses().unwrap();
        for address in ["127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"] {
            assert!(addresses.contains(&addr(address)), "{address} of {addresses:?}");
        }
        let on_link = |address: &str| Some(HopKey { interface: up0.index, gateway: addr(address) });
        let mut hop = |to: &str, from: &str| netlink.next_hop(addr(to), addr(from)).unwrap();
        assert_eq!(hop("192.0.2.9", "192.0.2.1"), on_link("192.0.2.9"));
        assert_eq!(hop("192.0.2.9", "0.0.0.0"), on_link("192.0.2.9"));
        assert_eq!(hop("2001:db8::9", "2001:db8::1"), on_link("2001:db8::9"));
        assert_eq!(hop("198.51.100.1", "192.0.2.1"), None);
        assert_eq!(hop("203.0.113.1", "192.0.2.1"), None);
        assert_eq!(hop("192.0.2.255", "192.0.2.1"), None, "broadcast");
        assert_eq!(hop("192.0.2.9", "192.0.2.77"), None, "not an address of this host");
        assert_eq!(hop("8.8.8.8", "192.0.2.1"), None, "no route");
    });
}

#[test]
fn the_forwarder_fragments_what_came_in_fragments_and_nothing_else() {
    in_namespace("the_forwarder_fragments_what_came_in_fragments_and_nothing_else", || {
        // The relay has one interface to each agent; the second takes packets of 1300 bytes.
        ip("link set lo up");
        ip("link add near type veth peer name near0");
        ip("link add far mtu 1300 type veth peer name far0 mtu 1300");
        let agents = Inside::new();
        for (relay, agent, net) in [("near", "near0", 1), ("far", "far0", 2)] {
            ip(&format!("link set {agent} netns {}", agents.thread));
            ip(&format!("address add 10.9.{net}.1/24 dev {relay}"));
            ip(&format!("link set {relay} up"));
            agents.run(move || {
                ip(&format!("address add 10.9.{net}.2/24 dev {agent}"));
                ip(&format!("link set {agent} up"));
            });
        }
        let [connector, target] = [1, 2].map(|net| {
            agents.run(move || UdpSocket::bind(SocketAddr::new(addr(&format!("10.9.{net}.2")), 0)).unwrap())
        });
        target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let port = RelayPort::open(4433, 1, MAGIC).unwrap();
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC));
        let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let forwarder = Forwarder::start(port, tables, Merging::On).unwrap().forwarder;
        let relay = [1, 2].map(|net| SocketAddr::new(addr(&format!("10.9.{net}.1")), 4433));
        let tuple = |agent: &UdpSocket, relay| FlowTuple { agent: agent.local_addr().unwrap(), relay };
        let (now, lease) = (MonoTime::now(), Duration::from_secs(300));
        let sides = [tuple(&connector, relay[0]), tuple(&target, relay[1])];
        flows.install(sides, Limit::UNLIMITED, &Origin::NONE, [now + lease; 2], now).unwrap();

        let mut buffer = [0; 8192];
        let payload: Vec<u8> = (0..4000u32).map(|at| (at % 251) as u8).collect();
        connector.send_to(&payload, relay[0]).unwrap();
        let (len, from) = target.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&payload[..], relay[1]), "from the address on its own side");

        // 1400 bytes fit the first network whole, and not the second.
        connector.send_to(&payload[..1400], relay[0]).unwrap();
        until_counted(&forwarder, Reason::SendTooBig, 1);
        connector.send_to(b"small", relay[0]).unwrap();
        let (len, _) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"small");
        until_counted(&forwarder, Reason::Forwarded, 2);
    });
}

#[test]
fn the_forwarder_goes_on_when_the_kernel_has_no_room_for_what_it_sends() {
    const NAME: &str = "the_forwarder_goes_on_when_the_kernel_has_no_room_for_what_it_sends";
    /// How much a socket may hold besides data, which the control messages of what it sends are. Each network has its own
    /// since Linux 6.8.
    const ROOM: &str = "/proc/sys/net/core/optmem_max";
    in_namespace(NAME, || {
        let Ok(room) = std::fs::read_to_string(ROOM) else {
            return skipping::skip(NAME, "needs Linux 6.8, which lets a network have its own optmem_max");
        };
        ip("link set lo up");
        let agents = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        agents[1].set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let port = RelayPort::open(4433, 1, MAGIC).unwrap();
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC));
        let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let forwarder = Forwarder::start(port, tables, Merging::On).unwrap().forwarder;
        let relay = SocketAddr::new(addr("127.0.0.1"), 4433);
        let sides = agents.each_ref().map(|agent| FlowTuple { agent: agent.local_addr().unwrap(), relay });
        let (now, lease) = (MonoTime::now(), Duration::from_secs(300));
        flows.install(sides, Limit::UNLIMITED, &Origin::NONE, [now + lease; 2], now).unwrap();

        std::fs::write(ROOM, "0").unwrap();
        for lost in 1..=3 {
            agents[0].send_to(b"lost", relay).unwrap();
            until_counted(&forwarder, Reason::SendFailed, lost);
        }
        std::fs::write(ROOM, room).unwrap();
        agents[0].send_to(b"sent", relay).unwrap();
        let mut buffer = [0; 16];
        let (len, _) = agents[1].recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"sent");
        until_counted(&forwarder, Reason::Forwarded, 1);
    });
}

#[test]
fn the_relay_runs_on_ipv4_alone_where_ipv6_is_disabled() {
    in_namespace("the_relay_runs_on_ipv4_alone_where_ipv6_is_disabled", || {
        let conf = |interface: &str| format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        let families = || RelayPort::open(4433, 1, MAGIC).unwrap().addresses().iter().count();
        ip("link add up0 type veth peer name down0");
        assert_eq!(families(), 2, "no address yet, but one may come");
        std::fs::write(conf("all"), "1").unwrap();
        assert_eq!(families(), 1);
        std::fs::write(conf("up0"), "0").unwrap();
        assert_eq!(families(), 2, "one interface is enough");
    });
}

#[test]
fn a_mixed_pair_over_ethernet_carries_1452_bytes_whole_and_fragments_both_ways() {
    in_namespace("a_mixed_pair_over_ethernet_carries_1452_bytes_whole_and_fragments_both_ways", || {
        let agents = Inside::new();
        for (relay, agent, relay_net, agent_net) in [
            ("near", "near0", "10.9.1.1/24", "10.9.1.2/24"),
            ("far", "far0", "fd00:9::1/64 nodad", "fd00:9::2/64 nodad"),
        ] {
            ip(&format!("link add {relay} type veth peer name {agent}"));
            ip(&format!("link set {agent} netns {}", agents.thread));
            ip(&format!("address add {relay_net} dev {relay}"));
            ip(&format!("link set {relay} up"));
            agents.run(move || {
                ip(&format!("address add {agent_net} dev {agent}"));
                ip(&format!("link set {agent} up"));
            });
        }
        let [connector, target] = ["10.9.1.2", "fd00:9::2"]
            .map(|address| agents.run(move || UdpSocket::bind(SocketAddr::new(addr(address), 0)).unwrap()));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _within = runtime.enter();
        let port = RelayPort::open(4433, 1, MAGIC).unwrap();
        let tables = Arc::new(Tables::private(TableSizes::for_sessions(4), [1, 2], MAGIC));
        let mut flows = FlowTable::new(Arc::clone(&tables), NoRoutes);
        let forwarder = Forwarder::start(port, tables, Merging::On).unwrap().forwarder;
        let [near, far] = ["10.9.1.1", "fd00:9::1"].map(|relay| SocketAddr::new(addr(relay), 4433));
        let tuple = |agent: &UdpSocket, relay| FlowTuple { agent: agent.local_addr().unwrap(), relay };
        let (now, lease) = (MonoTime::now(), Duration::from_secs(300));
        flows
            .install(
                [tuple(&connector, near), tuple(&target, far)],
                Limit::UNLIMITED,
                &Origin::NONE,
                [now + lease; 2],
                now,
            )
            .unwrap();

        let payload: Vec<u8> = (0..4000u32).map(|at| (at % 251) as u8).collect();
        let mut buffer = [0; 8192];
        for [(from, by), (to, of)] in
            [[(&connector, near), (&target, far)], [(&target, far), (&connector, near)]]
        {
            to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            for sent in [&payload[..1452], &payload] {
                from.send_to(sent, by).unwrap();
                let (len, source) = to.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], source), (sent, of));
            }
        }
        // What fits an IPv4 path whole is too large as IPv6.
        connector.send_to(&payload[..1453], near).unwrap();
        until_counted(&forwarder, Reason::SendTooBig, 1);
        until_counted(&forwarder, Reason::Forwarded, 4);
    });
}

/// The next hops of the namespace, and what was written of them.
struct Network {
    events: NetworkEvents,
    hops: NextHops<Written>,
    written: Written,
}

#[derive(Clone, Default)]
struct Written(Rc<RefCell<BTreeMap<HopId, Hop>>>);

impl HopArray for Written {
    fn write(&mut self, id: HopId, hop: &Hop) {
        self.0.borrow_mut().insert(id, *hop);
    }
}

impl Network {
    fn open() -> Network {
        let written = Written::default();
        let events = NetworkEvents::subscribe().unwrap();
        Network { events, hops: NextHops::open(written.clone()).unwrap(), written }
    }

    fn interface(&self, name: &str) -> u32 {
        let links = Netlink::open().unwrap().links().unwrap();
        links.into_iter().find(|link| link.name == name).unwrap().index
    }

    fn written(&self, hop: HopId) -> Option<Hop> {
        self.written.0.borrow().get(&hop).copied()
    }

    async fn until(&mut self, hop: HopId, is: impl Fn(&Hop) -> bool) {
        let written = self.written.clone();
        self.until_change(|_| written.0.borrow().get(&hop).is_some_and(&is)).await;
    }

    /// What is announced up to an entry for `neighbour`, which this adds: what comes later cannot have been left out.
    async fn asked_for_until_a_neighbour_is_added(&mut self, neighbour: &str) -> Vec<NetworkChange> {
        ip(&format!("neighbour add {neighbour} lladdr 02:00:00:00:00:07 nud permanent dev up0"));
        let added = HopKey { interface: self.interface("up0"), gateway: addr(neighbour) };
        let asked = RefCell::new(Vec::new());
        self.until_change(|change| {
            asked.borrow_mut().push(change.clone());
            change.neighbours.contains(&added)
        })
        .await;
        asked.into_inner()
    }

    async fn until_routes_changed(&mut self) {
        self.until_change(|change| change.routes).await;
    }

    /// Follows the announcements until one makes `enough` true.
    async fn until_change(&mut self, enough: impl Fn(&NetworkChange) -> bool) {
        let follow = async {
            loop {
                let change = self.events.next().await;
                let routes = self.hops.refresh(&change);
                assert_eq!(routes, change.routes || change.addresses);
                if enough(&change) {
                    return;
                }
            }
        };
        let followed = tokio::time::timeout(Duration::from_secs(10), follow).await;
        followed.unwrap_or_else(|_| panic!("not announced; written: {:?}", self.written.0.borrow()));
    }
}

fn kernel_version() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
