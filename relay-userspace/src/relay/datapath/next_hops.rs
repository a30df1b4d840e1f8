//! The next hops of relayed packets: which there are, and how a packet leaves for each. Pure: facts come in, entries of
//! the program's next-hop array go out.
//!
//! A next hop is a gateway (or an agent on the relay's own network) behind an interface. Sessions name it by number, so a
//! gateway that changes its MAC address is one write, however many sessions use it. What is not known to be good is left
//! to userspace: the program then passes the packet up, and the kernel's stack resolves the neighbour when the forwarder
//! sends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use relay_common::next_hop::{Egress, Hop, station_words};

use super::program::Hook;

/// The number of a next hop: its place in the program's array and in the device map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u16);

impl HopId {
    /// The entry that always leaves packets to userspace: for destinations without a usable route.
    pub const USERSPACE: HopId = HopId(0);
}

/// What a next hop is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HopKey {
    /// Index of the interface towards it.
    pub interface: u32,
    /// The gateway's address, or the destination's if it is on the interface's own network.
    pub gateway: IpAddr,
}

/// An interface, as far as packets leaving by it are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; `None` if it does not speak Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The largest IP packet it takes, in bytes.
    pub mtu: u32,
    /// It is up and has a carrier.
    pub up: bool,
    /// It is one end of a veth pair.
    pub veth: bool,
    /// What it is on top of, if it is a VLAN.
    pub vlan: Option<Vlan>,
    /// The XDP program attached to it, ours or another.
    pub xdp: Option<XdpProgram>,
    /// Whether its driver takes frames that a native XDP program redirects to it; `None` if the kernel (before 6.3)
    /// cannot say.
    pub takes_redirects: Option<bool>,
}

/// A VLAN (802.1Q) on top of another interface, by which its frames come and go with their tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface below.
    pub below: u32,
    /// The VLAN's number.
    pub number: u16,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpProgram {
    /// Where it runs.
    pub hook: Hook,
    /// The kernel's number of the program.
    pub id: u32,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// Where next hops are written: the array the program reads and its device map.
pub trait HopArray {
    /// Replaces entry `id`. If `hop` is redirected to, the device map's entry of the same number must lead to its
    /// interface before the program sees `hop`; if that cannot be, [`Egress::Userspace`] is to be written.
    fn write(&mut self, id: HopId, hop: &Hop);
}

/// The next hops in use.
#[derive(Debug)]
pub struct HopTable<A> {
    array: A,
    /// By number. Entry 0 is never used.
    entries: Vec<Option<Entry>>,
    ids: HashMap<HopKey, HopId>,
    /// Numbers that a predecessor has given out, with their users. What stands in the array under them stays as it is.
    held: BTreeMap<HopId, u32>,
    /// Numbers given back, the oldest first: a packet may be on its way to an entry that was just given back.
    free: VecDeque<HopId>,
    capacity: usize,
    links: HashMap<u32, Link>,
    ingress: BTreeMap<u32, Hook>,
}

#[derive(Debug)]
struct Entry {
    key: HopKey,
    neighbour: Option<Neighbour>,
    users: u32,
    written: Hop,
}

/// The answer to [`HopTable::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The hop was there.
    Known(HopId),
    /// It is new: its link and neighbour are to be told.
    New(HopId),
    /// Every number is in use.
    Full,
}

impl<A: HopArray> HopTable<A> {
    /// An empty table over `array`, which has `capacity` entries, all of them left to userspace.
    pub fn new(array: A, capacity: u16) -> HopTable<A> {
        HopTable {
            array,
            entries: vec![None],
            ids: HashMap::new(),
            held: BTreeMap::new(),
            free: VecDeque::new(),
            capacity: usize::from(capacity),
            links: HashMap::new(),
            ingress: BTreeMap::new(),
        }
    }

    /// The number of a next hop, for one more user of it.
    pub fn acquire(&mut self, key: HopKey) -> Acquired {
        if let Some(id) = self.ids.get(&key).copied() {
            if let Some(entry) = self.entry_mut(id) {
                entry.users += 1;
            }
            return Acquired::Known(id);
        }
        let Some(id) = self.unused() else { return Acquired::Full };
        if let Some(place) = self.entries.get_mut(usize::from(id.0)) {
            *place = Some(Entry { key, neighbour: None, users: 1, written: USERSPACE });
        }
        self.ids.insert(key, id);
        Acquired::New(id)
    }

    /// Takes over an array that is in use: its entries `users` are, each by so many, and stay as they are until the last has
    /// released them. All others are nobody's.
    pub fn hold(&mut self, users: impl IntoIterator<Item = (HopId, u32)>) {
        let used = |(id, _): &(HopId, u32)| *id != HopId::USERSPACE && usize::from(id.0) < self.capacity;
        self.held = users.into_iter().filter(used).collect();
        self.entries.resize_with(self.capacity, || None);
        for number in 1..self.capacity {
            let id = HopId(number as u16);
            if !self.held.contains_key(&id) {
                self.array.write(id, &USERSPACE);
                self.free.push_back(id);
            }
        }
    }

    /// One user less. The last one's leaving frees the number.
    pub fn release(&mut self, id: HopId) {
        if let Some(users) = self.held.get_mut(&id) {
            *users = users.saturating_sub(1);
            if *users == 0 {
                self.held.remove(&id);
                self.array.write(id, &USERSPACE);
                self.free.push_back(id);
            }
            return;
        }
        let Some(place) = self.entries.get_mut(usize::from(id.0)) else { return };
        let Some(entry) = place else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users == 0 {
            self.ids.remove(&entry.key);
            if entry.written != USERSPACE {
                self.array.write(id, &USERSPACE);
            }
            *place = None;
            self.free.push_back(id);
        }
    }

    /// Tells what the kernel knows of a neighbour now: `None` if it has no valid entry for it.
    pub fn set_neighbour(&mut self, key: HopKey, neighbour: Option<Neighbour>) {
        if let Some(id) = self.ids.get(&key).copied()
            && let Some(entry) = self.entry_mut(id)
        {
            entry.neighbour = neighbour;
            self.update(id);
        }
    }

    /// Tells about an interface: `None` if it is gone.
    pub fn set_link(&mut self, index: u32, link: Option<Link>) {
        match link {
            Some(link) => self.links.insert(index, link),
            None => self.links.remove(&index),
        };
        self.update_all();
    }

    /// Tells which interfaces the program is attached to, by index, and where it runs.
    pub fn set_ingress(&mut self, ingress: BTreeMap<u32, Hook>) {
        self.ingress = ingress;
        self.update_all();
    }

    /// The interfaces that the program is attached to, by index.
    pub fn ingress(&self) -> impl Iterator<Item = u32> + '_ {
        self.ingress.keys().copied()
    }

    /// What was told about an interface last.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The next hops in use.
    pub fn keys(&self) -> impl Iterator<Item = HopKey> + '_ {
        self.ids.keys().copied()
    }

    /// The interfaces whose facts were told, by index.
    pub fn links(&self) -> impl Iterator<Item = u32> + '_ {
        self.links.keys().copied()
    }

    /// The interfaces that the next hops in use lead through; of a VLAN the one that its frames leave by.
    pub fn egress(&self) -> BTreeSet<u32> {
        let interfaces = self.keys().map(|key| key.interface);
        interfaces.map(|index| self.below(index).unwrap_or(index)).collect()
    }

    /// Whether the next hop is in use.
    pub fn contains(&self, key: &HopKey) -> bool {
        self.ids.contains_key(key)
    }

    /// Whether the interface's facts are known.
    pub fn knows_link(&self, index: u32) -> bool {
        self.links.contains_key(&index)
    }

    /// The interface below, if the interface is known and a VLAN.
    pub fn below(&self, index: u32) -> Option<u32> {
        self.links.get(&index)?.vlan.map(|vlan| vlan.below)
    }

    /// The entry as it was written last.
    pub fn hop(&self, id: HopId) -> Hop {
        self.entries.get(usize::from(id.0)).and_then(Option::as_ref).map_or(USERSPACE, |entry| entry.written)
    }

    fn entry_mut(&mut self, id: HopId) -> Option<&mut Entry> {
        self.entries.get_mut(usize::from(id.0))?.as_mut()
    }

    /// A number without a next hop: a new one while there are any, so that a freed one rests as long as possible.
    fn unused(&mut self) -> Option<HopId> {
        if self.entries.len() < self.capacity {
            let id = HopId(u16::try_from(self.entries.len()).ok()?);
            self.entries.push(None);
            return Some(id);
        }
        self.free.pop_front()
    }

    fn update_all(&mut self) {
        for number in 1..self.entries.len() {
            self.update(HopId(number as u16));
        }
    }

    /// Writes the entry if what is known of it makes another one.
    fn update(&mut self, id: HopId) {
        let Some(Some(entry)) = self.entries.get_mut(usize::from(id.0)) else { return };
        let hop = hop(entry, &self.links, &self.ingress);
        if hop != entry.written {
            entry.written = hop;
            self.array.write(id, &hop);
        }
    }
}

/// The entry of a hop that is left to userspace.
pub(super) const USERSPACE: Hop =
    Hop { egress: Egress::Userspace, interface: 0, mtu: 0, stations: [0; 3], vlan: 0 };

fn hop(entry: &Entry, links: &HashMap<u32, Link>, ingress: &BTreeMap<u32, Hook>) -> Hop {
    let (Some(neighbour), Some(link)) = (entry.neighbour, links.get(&entry.key.interface)) else {
        return USERSPACE;
    };
    let Some(mac) = link.mac.filter(|_| link.up) else { return USERSPACE };
    // The frames of a VLAN leave by the interface below it; one tag is what the program keeps. A VLAN that the program
    // itself is attached to has frames without.
    let (below, vlan) = match link.vlan.filter(|_| !ingress.contains_key(&link.index)) {
        None if tags_are_hidden(links, ingress) => return USERSPACE,
        None => (link, 0),
        Some(Vlan { below, number }) => match links.get(&below) {
            Some(below) if below.up && below.vlan.is_none() => (below, number),
            _ => return USERSPACE,
        },
    };
    match egress(below, ingress) {
        Egress::Userspace => USERSPACE,
        egress => {
            let stations = station_words(neighbour.mac, mac);
            Hop { egress, interface: below.index, mtu: link.mtu, stations, vlan }
        }
    }
}

/// Whether frames of a VLAN in use may come without their tag. In generic mode the kernel, or the driver, takes a tag off
/// before the program sees the frame, and puts it back when the frame is sent: what looks untagged, and would leave by a
/// hop without VLAN, leaves with the tag it came with (seen on Linux 6.18).
fn tags_are_hidden(links: &HashMap<u32, Link>, ingress: &BTreeMap<u32, Hook>) -> bool {
    let mut vlans = links.values().filter_map(|link| link.vlan);
    vlans.any(|vlan| ingress.get(&vlan.below) == Some(&Hook::Generic))
}

/// How packets that came by `ingress` leave by `link`.
///
/// Transmitting sends a frame out of the interface it came by, so it is right only if that can be no other. On a native
/// veth it is never right: a veth whose peer has no XDP program takes transmitted frames and loses them, but hands
/// redirected ones over.
fn egress(link: &Link, ingress: &BTreeMap<u32, Hook>) -> Egress {
    let Some((first, hook)) = ingress.first_key_value() else { return Egress::Userspace };
    let one_way = ingress.len() == 1 && *first == link.index;
    if one_way && (*hook == Hook::Generic || !link.veth) {
        return Egress::Transmit;
    }
    // In generic mode the kernel sends a redirected frame as it sends any other.
    let all_generic = ingress.values().all(|hook| *hook == Hook::Generic);
    if all_generic || takes_redirects(link) { Egress::Redirect } else { Egress::Userspace }
}

/// Whether the driver takes redirected frames. Where the kernel cannot say: drivers other than veth do while they have
/// an XDP program; veth only if its peer has one or merges received packets, which is not seen from this end.
fn takes_redirects(link: &Link) -> bool {
    let native = link.xdp.is_some_and(|program| program.hook == Hook::Native);
    link.takes_redirects.unwrap_or(native && !link.veth)
}

#[cfg(test)]
mod tests;
