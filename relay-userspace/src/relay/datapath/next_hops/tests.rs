use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ETH: u32 = 3;
const OTHER: u32 = 4;

#[derive(Clone, Default)]
struct Written(Rc<RefCell<Vec<(HopId, Hop)>>>);

impl HopArray for Written {
    fn write(&mut self, id: HopId, hop: &Hop) {
        self.0.borrow_mut().push((id, *hop));
    }
}

fn link(index: u32) -> Link {
    Link {
        index,
        name: format!("eth{index}"),
        mac: Some(OWN_MAC),
        mtu: 1500,
        up: true,
        veth: false,
        vlan: None,
        xdp: None,
        takes_redirects: Some(true),
    }
}

fn gateway(last: u8) -> HopKey {
    HopKey { interface: ETH, gateway: IpAddr::from([192, 0, 2, last]) }
}

/// A table with one resolved hop on `link`, the program being on `ingress`.
fn table(link: Link, ingress: &[(u32, Hook)]) -> (HopTable<Written>, HopId, Written) {
    let written = Written::default();
    let mut table = HopTable::new(written.clone(), 8);
    table.set_ingress(ingress.iter().copied().collect());
    let Acquired::New(id) = table.acquire(gateway(1)) else { panic!("not new") };
    table.set_link(ETH, Some(link));
    table.set_neighbour(gateway(1), Some(Neighbour { mac: GATEWAY_MAC }));
    (table, id, written)
}

fn verdict(link: Link, ingress: &[(u32, Hook)]) -> Egress {
    let (table, id, _) = table(link, ingress);
    table.hop(id).egress
}

#[test]
fn a_hop_is_left_to_userspace_until_link_and_neighbour_are_known() {
    let written = Written::default();
    let mut table = HopTable::new(written.clone(), 8);
    table.set_ingress([(ETH, Hook::Native)].into());
    assert_eq!(table.acquire(gateway(1)), Acquired::New(HopId(1)));
    table.set_neighbour(gateway(1), Some(Neighbour { mac: GATEWAY_MAC }));
    assert!(written.0.borrow().is_empty());
    table.set_link(ETH, Some(link(ETH)));
    let hop = Hop {
        egress: Egress::Transmit,
        interface: ETH,
        mtu: 1500,
        stations: station_words(GATEWAY_MAC, OWN_MAC),
        vlan: 0,
    };
    assert_eq!(*written.0.borrow(), [(HopId(1), hop)]);
}

#[test]
fn hops_behind_one_gateway_share_a_number_until_the_last_user_leaves() {
    let (mut table, id, written) = table(link(ETH), &[(ETH, Hook::Native)]);
    assert_eq!(table.acquire(gateway(1)), Acquired::Known(id));
    table.release(id);
    assert_eq!(table.hop(id).egress, Egress::Transmit);
    table.release(id);
    assert_eq!(written.0.borrow().last(), Some(&(id, USERSPACE)));
    assert!(!table.contains(&gateway(1)));
}

#[test]
fn a_freed_number_is_used_again_only_when_there_is_no_fresh_one() {
    let (mut table, id, _) = table(link(ETH), &[]);
    table.release(id);
    let numbers: Vec<_> = (2..=8).map(|last| table.acquire(gateway(last))).collect();
    assert_eq!(numbers[0], Acquired::New(HopId(2)));
    assert_eq!(numbers[6], Acquired::New(id), "the freed one, last");
    assert_eq!(table.acquire(gateway(9)), Acquired::Full);
}

#[test]
fn a_changed_gateway_mac_is_one_write() {
    let (mut table, id, written) = table(link(ETH), &[(ETH, Hook::Native)]);
    for _ in 0..1000 {
        table.acquire(gateway(1));
    }
    written.0.borrow_mut().clear();
    let changed = [2, 0, 0, 0, 0, 99];
    table.set_neighbour(gateway(1), Some(Neighbour { mac: changed }));
    table.set_neighbour(gateway(1), Some(Neighbour { mac: changed }));
    assert_eq!(written.0.borrow().len(), 1);
    assert_eq!(table.hop(id).stations, station_words(changed, OWN_MAC));
}

#[test]
fn a_lost_neighbour_or_link_leaves_the_hop_to_userspace_until_it_is_back() {
    let (mut table, id, _) = table(link(ETH), &[(ETH, Hook::Native)]);
    table.set_neighbour(gateway(1), None);
    assert_eq!(table.hop(id), USERSPACE);
    table.set_neighbour(gateway(1), Some(Neighbour { mac: GATEWAY_MAC }));
    assert_eq!(table.hop(id).egress, Egress::Transmit);
    table.set_link(ETH, Some(Link { up: false, ..link(ETH) }));
    assert_eq!(table.hop(id), USERSPACE);
    table.set_link(ETH, Some(link(ETH)));
    assert_eq!(table.hop(id).egress, Egress::Transmit);
    table.set_link(ETH, None);
    assert_eq!(table.hop(id), USERSPACE);
}

#[test]
fn the_mtu_and_own_mac_follow_the_link() {
    let (mut table, id, _) = table(link(ETH), &[(ETH, Hook::Native)]);
    let mac = [2, 0, 0, 0, 0, 7];
    table.set_link(ETH, Some(Link { mtu: 1280, mac: Some(mac), ..link(ETH) }));
    assert_eq!((table.hop(id).mtu, table.hop(id).stations), (1280, station_words(GATEWAY_MAC, mac)));
}

#[test]
fn the_only_interface_transmits_except_a_native_veth_which_redirects() {
    assert_eq!(verdict(link(ETH), &[(ETH, Hook::Native)]), Egress::Transmit);
    let veth = Link { veth: true, ..link(ETH) };
    assert_eq!(verdict(veth.clone(), &[(ETH, Hook::Native)]), Egress::Redirect);
    assert_eq!(verdict(veth, &[(ETH, Hook::Generic)]), Egress::Transmit);
}

#[test]
fn with_several_ingress_interfaces_nothing_is_transmitted() {
    let both = [(ETH, Hook::Native), (OTHER, Hook::Native)];
    assert_eq!(verdict(link(ETH), &both), Egress::Redirect);
}

#[test]
fn another_interface_is_redirected_to_only_if_it_takes_that() {
    assert_eq!(verdict(link(ETH), &[(OTHER, Hook::Native)]), Egress::Redirect);
    let refuses = Link { takes_redirects: Some(false), ..link(ETH) };
    assert_eq!(verdict(refuses.clone(), &[(OTHER, Hook::Native)]), Egress::Userspace);
    assert_eq!(verdict(refuses, &[(OTHER, Hook::Generic)]), Egress::Redirect);
}

#[test]
fn on_kernels_that_cannot_say_only_drivers_with_a_program_are_redirected_to() {
    let silent = Link { takes_redirects: None, ..link(ETH) };
    let program = Some(XdpProgram { hook: Hook::Native, id: 1 });
    assert_eq!(verdict(silent.clone(), &[(OTHER, Hook::Native)]), Egress::Userspace);
    let with_program = Link { xdp: program, ..silent };
    assert_eq!(verdict(with_program.clone(), &[(OTHER, Hook::Native)]), Egress::Redirect);
    let veth = Link { veth: true, ..with_program };
    assert_eq!(verdict(veth, &[(OTHER, Hook::Native)]), Egress::Userspace);
}

#[test]
fn a_hop_in_a_vlan_leaves_by_the_interface_below_with_the_tag() {
    let vlan = Link { vlan: Some(Vlan { below: OTHER, number: 5 }), mtu: 1400, ..link(ETH) };
    let (mut table, id, _) = table(vlan.clone(), &[(OTHER, Hook::Native)]);
    assert_eq!(table.hop(id), USERSPACE, "the interface below is not known");
    table.set_link(OTHER, Some(Link { mac: Some([2, 0, 0, 0, 0, 7]), ..link(OTHER) }));
    let expected = Hop {
        egress: Egress::Transmit,
        interface: OTHER,
        mtu: 1400,
        stations: station_words(GATEWAY_MAC, OWN_MAC),
        vlan: 5,
    };
    assert_eq!(table.hop(id), expected);
    table.set_link(OTHER, Some(Link { up: false, ..link(OTHER) }));
    assert_eq!(table.hop(id), USERSPACE, "the interface below is down");
    table.set_link(OTHER, Some(link(OTHER)));
    table.set_link(ETH, Some(Link { up: false, ..vlan }));
    assert_eq!(table.hop(id), USERSPACE, "the VLAN is down");
}

#[test]
fn hops_tell_the_interfaces_that_their_frames_leave_by() {
    let (mut table, id, _) = table(link(ETH), &[(OTHER, Hook::Native)]);
    assert_eq!(table.egress(), [ETH].into());
    table.set_link(ETH, Some(Link { vlan: Some(Vlan { below: OTHER, number: 5 }), ..link(ETH) }));
    assert_eq!(table.egress(), [OTHER].into());
    table.release(id);
    assert_eq!(table.egress(), [].into());
}

#[test]
fn a_vlan_leaves_by_another_interface_only_if_the_one_below_takes_redirects() {
    let vlan =
        Link { vlan: Some(Vlan { below: OTHER, number: 5 }), takes_redirects: Some(false), ..link(ETH) };
    let (mut table, id, _) = table(vlan, &[(7, Hook::Native)]);
    table.set_link(OTHER, Some(link(OTHER)));
    assert_eq!((table.hop(id).egress, table.hop(id).interface), (Egress::Redirect, OTHER));
    table.set_link(OTHER, Some(Link { takes_redirects: Some(false), ..link(OTHER) }));
    assert_eq!(table.hop(id), USERSPACE);
}

#[test]
fn a_vlan_that_the_program_is_attached_to_has_frames_without_tag() {
    let vlan = Link { vlan: Some(Vlan { below: OTHER, number: 5 }), ..link(ETH) };
    let (mut table, id, _) = table(vlan, &[(ETH, Hook::Generic)]);
    table.set_link(OTHER, Some(link(OTHER)));
    let hop = table.hop(id);
    assert_eq!((hop.egress, hop.interface, hop.vlan), (Egress::Transmit, ETH, 0));
}

#[test]
fn in_generic_mode_a_vlan_in_use_leaves_hops_without_one_to_userspace() {
    for (hook, egress) in [(Hook::Generic, Egress::Userspace), (Hook::Native, Egress::Transmit)] {
        let (mut table, id, _) = table(link(ETH), &[(ETH, hook)]);
        assert_eq!(table.hop(id).egress, Egress::Transmit);
        table.set_link(OTHER, Some(Link { vlan: Some(Vlan { below: 7, number: 5 }), ..link(OTHER) }));
        assert_eq!(table.hop(id).egress, Egress::Transmit, "a VLAN elsewhere");
        table.set_link(OTHER, Some(Link { vlan: Some(Vlan { below: ETH, number: 5 }), ..link(OTHER) }));
        assert_eq!(table.hop(id).egress, egress, "{hook:?}");
        table.set_link(OTHER, None);
        assert_eq!(table.hop(id).egress, Egress::Transmit);
    }
}

#[test]
fn a_vlan_within_a_vlan_is_left_to_userspace() {
    let on = |below, index| Link { vlan: Some(Vlan { below, number: 5 }), ..link(index) };
    let (mut table, id, _) = table(on(OTHER, ETH), &[(7, Hook::Native)]);
    table.set_link(7, Some(link(7)));
    table.set_link(OTHER, Some(on(7, OTHER)));
    assert_eq!(table.hop(id), USERSPACE);
}

#[test]
fn without_a_program_or_ethernet_everything_is_left_to_userspace() {
    assert_eq!(verdict(link(ETH), &[]), Egress::Userspace);
    assert_eq!(verdict(Link { mac: None, ..link(ETH) }, &[(ETH, Hook::Native)]), Egress::Userspace);
}

#[test]
fn a_full_table_changes_nothing_for_those_in_it() {
    let (mut table, id, _) = table(link(ETH), &[(ETH, Hook::Native)]);
    for last in 2..=20 {
        table.acquire(gateway(last));
    }
    assert_eq!(table.acquire(gateway(1)), Acquired::Known(id));
    assert_eq!(table.hop(id).egress, Egress::Transmit);
}

proptest! {
    /// The array always holds what was written last, numbers are unique, and 0 is never given.
    #[test]
    fn numbers_are_unique_and_the_array_agrees(steps in prop::collection::vec((0u8..5, 1u8..12), 0..200)) {
        let written = Written::default();
        let mut table = HopTable::new(written.clone(), 8);
        table.set_ingress([(ETH, Hook::Native)].into());
        table.set_link(ETH, Some(link(ETH)));
        let mut held = Vec::new();
        for (step, which) in steps {
            match step {
                0 | 1 => match table.acquire(gateway(which)) {
                    Acquired::Known(id) => {
                        prop_assert!(held.contains(&(id, which)));
                        held.push((id, which));
                    }
                    Acquired::New(id) => {
                        prop_assert!(id != HopId::USERSPACE && held.iter().all(|(other, _)| *other != id));
                        held.push((id, which));
                    }
                    Acquired::Full => {}
                },
                2 => if let Some((id, _)) = held.pop() {
                    table.release(id);
                },
                3 => table.set_neighbour(gateway(which), Some(Neighbour { mac: [2, 0, 0, 0, 0, which] })),
                _ => table.set_neighbour(gateway(which), None),
            }
            let mut array = [USERSPACE; 8];
            for (id, hop) in written.0.borrow().iter() {
                array[usize::from(id.0)] = *hop;
            }
            for number in 0..8 {
                prop_assert_eq!(array[usize::from(number)], table.hop(HopId(number)));
            }
        }
    }
}

#[test]
fn entries_of_a_predecessor_stay_as_they_are_until_their_last_user_has_left_them() {
    let written = Written::default();
    let mut table = HopTable::new(written.clone(), 5);
    table.set_ingress([(ETH, Hook::Native)].into());
    table.hold([(HopId(2), 2), (HopId(3), 1), (HopId::USERSPACE, 1), (HopId(77), 1)]);
    let cleared = |written: &Written| -> Vec<u16> {
        written.0.take().into_iter().map(|(id, hop)| (id.0, assert_eq!(hop, USERSPACE)).0).collect()
    };
    assert_eq!(cleared(&written), [1, 4], "nobody uses these");
    table.set_link(ETH, Some(link(ETH)));
    assert_eq!(cleared(&written), [] as [u16; 0]);
    // New hops get other numbers.
    let [first, second, third] = [1, 2, 3].map(|last| table.acquire(gateway(last)));
    assert_eq!([first, second, third], [Acquired::New(HopId(1)), Acquired::New(HopId(4)), Acquired::Full]);
    table.release(HopId(2));
    assert_eq!(cleared(&written), [] as [u16; 0]);
    table.release(HopId(2));
    assert_eq!(cleared(&written), [2]);
    assert_eq!(table.acquire(gateway(3)), Acquired::New(HopId(2)));
    // From now on it is a hop like any other.
    table.release(HopId(2));
    assert_eq!(table.acquire(gateway(4)), Acquired::New(HopId(2)));
}
