//! What the tables lie in: BPF maps with the program, memory files or this process' own memory without. The first two live
//! on while somebody keeps their descriptors, and are checked before a successor goes on with them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::maps::{MapData, MapInfo, MapType};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use relay_common::hash::{self, HashSeed};
use relay_common::index::IndexBucket;
use relay_common::interface::{INTERFACES, Interface};
use relay_common::local::{LOCALS, Local};
use relay_common::maps::{self, NEXT_HOP_ENTRIES};
use relay_common::next_hop::NextHop;
use relay_common::slot::Slot;
use relay_common::{BIND_MAGIC_LEN, PerCpu};

use super::descriptors::{is_memory_file, memory_file};
use super::mapping::{Mapping, Shared, SharedArray};
use super::meta::{LAYOUT, Meta};
use super::previous_tuples::PreviousTuples;
use super::record::Record;
use super::tables::{TableSizes, Tables};
use crate::relay::keeper::Kept;

/// The descriptors of one set of tables.
#[derive(Debug)]
pub struct Backing {
    kind: BackingKind,
    sizes: TableSizes,
    hash_seed: HashSeed,
    descriptors: BTreeMap<&'static str, OwnedFd>,
}

/// What tables can lie in and be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingKind {
    /// Maps of the program.
    Bpf,
    /// Memory files.
    Memory,
}

/// The arrays: their name, the size of a record, how many there are.
fn arrays(sizes: TableSizes) -> [(&'static str, usize, u32); 7] {
    [
        (maps::META, size_of::<Meta>(), 1),
        (maps::INDEX, size_of::<IndexBucket>(), sizes.buckets),
        (maps::SLOTS, Slot::SIZE, sizes.slots),
        (maps::SESSIONS, Record::SIZE, sizes.slots),
        (maps::NEXT_HOPS, size_of::<NextHop>(), NEXT_HOP_ENTRIES),
        (maps::INTERFACES, size_of::<Interface>(), INTERFACES),
        (maps::LOCALS, size_of::<Local>(), LOCALS),
    ]
}

/// What is kept besides, with the program.
const BESIDES: [&str; 2] = [maps::EGRESS, maps::PER_CPU];

impl Backing {
    /// Whether something of this name is part of tables.
    pub fn is_part(name: &str) -> bool {
        let arrays = arrays(TableSizes::for_sessions(1));
        arrays.iter().any(|(array, ..)| *array == name) || BESIDES.contains(&name)
    }

    /// New memory files.
    ///
    /// # Errors
    /// No memory, or no more descriptors.
    pub fn in_memory(
        sizes: TableSizes,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
    ) -> io::Result<Backing> {
        let file = |(name, record, entries): (&'static str, usize, u32)| {
            let name_of_file = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
            Ok((name, memory_file(&name_of_file, record as u64 * u64::from(entries))?))
        };
        let descriptors = arrays(sizes).into_iter().map(file).collect::<io::Result<_>>()?;
        let backing = Backing { kind: BackingKind::Memory, sizes, hash_seed, descriptors };
        backing.begin(bind_magic)?;
        Ok(backing)
    }

    /// The maps of a program that was just loaded, and those that it does not know of.
    ///
    /// # Errors
    /// The kernel refuses a map.
    pub(super) fn of_program(
        sizes: TableSizes,
        hash_seed: HashSeed,
        bind_magic: [u8; BIND_MAGIC_LEN],
        map: impl Fn(&str) -> io::Result<OwnedFd>,
    ) -> io::Result<Backing> {
        let mut descriptors = BTreeMap::new();
        for (name, record, entries) in arrays(sizes) {
            let descriptor = match name {
                maps::SESSIONS | maps::META => new_array(name, record, entries)?,
                name => map(name)?,
            };
            descriptors.insert(name, descriptor);
        }
        for name in BESIDES {
            descriptors.insert(name, map(name)?);
        }
        let backing = Backing { kind: BackingKind::Bpf, sizes, hash_seed, descriptors };
        backing.begin(bind_magic)?;
        Ok(backing)
    }

    /// What a predecessor has left, if it has left tables: they are whole, of this version's layout and of the relay with
    /// this bind magic.
    ///
    /// # Errors
    /// They are not: nothing of them is to be used.
    pub fn check(kept: Vec<Kept>, bind_magic: [u8; BIND_MAGIC_LEN]) -> Result<Option<Backing>, BackingFault> {
        if kept.is_empty() {
            return Ok(None);
        }
        let mut by_name: BTreeMap<String, OwnedFd> =
            kept.into_iter().map(|Kept { name, descriptor }| (name, descriptor)).collect();
        let meta = by_name.get(maps::META).ok_or(BackingFault::Missing { name: maps::META })?;
        let kind = match is_memory_file(meta.as_fd()) {
            true => BackingKind::Memory,
            false => BackingKind::Bpf,
        };
        check_array(kind, maps::META, meta.as_fd(), size_of::<Meta>(), 1)?;
        let unreadable = |source| BackingFault::Unreadable { name: maps::META, source };
        let mapped = Mapping::<Meta>::new(meta.as_fd(), 1).map_err(unreadable)?;
        let Some(meta) = mapped.first() else { return Err(BackingFault::Missing { name: maps::META }) };
        if meta.layout() != LAYOUT {
            return Err(BackingFault::Layout { found: meta.layout() });
        }
        if meta.bind_magic() != u64::from_ne_bytes(bind_magic) {
            return Err(BackingFault::OtherRelay);
        }
        let sizes = meta.sizes().ok_or(BackingFault::Sizes)?;
        let mut descriptors = BTreeMap::new();
        for (name, record, entries) in arrays(sizes) {
            let descriptor = by_name.remove(name).ok_or(BackingFault::Missing { name })?;
            check_array(kind, name, descriptor.as_fd(), record, entries)?;
            descriptors.insert(name, descriptor);
        }
        if kind == BackingKind::Bpf {
            for name in BESIDES {
                // Without the counters of the predecessor, counting begins anew.
                match by_name.remove(name).filter(|descriptor| is_besides(name, descriptor.as_fd())) {
                    Some(descriptor) => {
                        descriptors.insert(name, descriptor);
                    }
                    None if name == maps::EGRESS => return Err(BackingFault::Missing { name }),
                    None => {}
                }
            }
        }
        Ok(Some(Backing { kind, sizes, hash_seed: meta.hash_seed(), descriptors }))
    }

    /// What it is.
    pub fn kind(&self) -> BackingKind {
        self.kind
    }

    /// How large the tables are.
    pub fn sizes(&self) -> TableSizes {
        self.sizes
    }

    /// What is to be kept, by name.
    pub fn descriptors(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.descriptors.iter().map(|(name, descriptor)| (*name, descriptor.as_fd()))
    }

    /// The tables that lie in it.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn tables(&self) -> io::Result<Tables> {
        let TableSizes { slots, buckets } = self.sizes;
        let meta = Mapping::<Meta>::new(self.descriptor(maps::META)?, 1)?;
        Ok(Tables {
            index: self.mapped(maps::INDEX, buckets)?,
            slots: self.mapped(maps::SLOTS, slots)?,
            records: self.mapped(maps::SESSIONS, slots)?,
            next_hops: self.mapped(maps::NEXT_HOPS, NEXT_HOP_ENTRIES)?,
            interfaces: self.mapped(maps::INTERFACES, INTERFACES)?,
            locals: self.mapped(maps::LOCALS, LOCALS)?,
            previous: PreviousTuples::default(),
            hash_key: hash::key(self.hash_seed),
            bind_magic: meta.first().map_or(0, Meta::bind_magic),
        })
    }

    /// Another set of descriptors of the same.
    ///
    /// # Errors
    /// No more descriptors.
    pub fn try_clone(&self) -> io::Result<Backing> {
        let Backing { kind, sizes, hash_seed, ref descriptors } = *self;
        let clone = |(name, descriptor): (&&'static str, &OwnedFd)| Ok((*name, descriptor.try_clone()?));
        let descriptors = descriptors.iter().map(clone).collect::<io::Result<_>>()?;
        Ok(Backing { kind, sizes, hash_seed, descriptors })
    }

    /// From here on a successor can go on with them.
    fn begin(&self, bind_magic: [u8; BIND_MAGIC_LEN]) -> io::Result<()> {
        let meta = Mapping::<Meta>::new(self.descriptor(maps::META)?, 1)?;
        if let Some(meta) = meta.first() {
            meta.write(self.sizes, self.hash_seed, u64::from_ne_bytes(bind_magic));
        }
        Ok(())
    }

    fn descriptor(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        Ok(self.descriptors.get(name).ok_or(io::ErrorKind::NotFound)?.as_fd())
    }

    fn mapped<T: Shared>(&self, name: &str, entries: u32) -> io::Result<SharedArray<T>> {
        Ok(SharedArray::Mapped(Mapping::new(self.descriptor(name)?, entries)?))
    }
}

/// Why tables that were left cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum BackingFault {
    /// A part is not there: the predecessor died before they were whole, or somebody has removed it.
    #[error("{name} is missing")]
    Missing {
        /// The part.
        name: &'static str,
    },
    /// Another version has left them.
    #[error("their layout is version {found}, this program's is {LAYOUT}")]
    Layout {
        /// Its layout.
        found: u32,
    },
    /// The relay has another identity.
    #[error("they are those of a relay with another identity")]
    OtherRelay,
    /// No tables have these sizes.
    #[error("they say of themselves to have sizes that no tables have")]
    Sizes,
    /// A part is not what it has to be.
    #[error("{name} is {found}, expected {expected}")]
    Shape {
        /// The part.
        name: &'static str,
        /// What it is.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// The kernel does not tell.
    #[error("{name} cannot be read: {source}")]
    Unreadable {
        /// The part.
        name: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

fn new_array(name: &str, record: usize, entries: u32) -> io::Result<OwnedFd> {
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let map = aya_obj::Map::new_from_params(array, 4, record as u32, entries, BPF_F_MMAPABLE);
    let map = MapData::create(map, name, None).map_err(io::Error::other)?;
    map.fd().as_fd().try_clone_to_owned()
}

fn check_array(
    kind: BackingKind,
    name: &'static str,
    descriptor: BorrowedFd<'_>,
    record: usize,
    entries: u32,
) -> Result<(), BackingFault> {
    let unreadable = |source| BackingFault::Unreadable { name, source };
    let (found, expected) = match kind {
        BackingKind::Memory => {
            let file = std::fs::File::from(descriptor.try_clone_to_owned().map_err(unreadable)?);
            let length = file.metadata().map_err(unreadable)?.len();
            let of = |sealed: bool, length: u64| {
                format!(
                    "{} of {length} bytes",
                    if sealed { "a memory file" } else { "no sealed memory file" }
                )
            };
            (of(is_memory_file(descriptor), length), of(true, record as u64 * u64::from(entries)))
        }
        BackingKind::Bpf => {
            let info = info(descriptor).map_err(unreadable)?;
            let is_array = info.map_type().is_ok_and(|kind| kind == MapType::Array);
            let is_mapped = info.map_flags() & BPF_F_MMAPABLE != 0;
            let of = |whole: bool, key: u32, record: u32, entries: u32| {
                let what = if whole { "an array that can be mapped" } else { "no such array" };
                format!("{what}, key of {key} bytes, {entries} records of {record} bytes")
            };
            let found = of(is_array && is_mapped, info.key_size(), info.value_size(), info.max_entries());
            (found, of(true, 4, record as u32, entries))
        }
    };
    if found == expected { Ok(()) } else { Err(BackingFault::Shape { name, found, expected }) }
}

/// Whether a map that was kept under this name is one the program can use as that.
fn is_besides(name: &str, descriptor: BorrowedFd<'_>) -> bool {
    let Ok(info) = info(descriptor) else { return false };
    let (Ok(kind), key, record, entries) =
        (info.map_type(), info.key_size(), info.value_size(), info.max_entries())
    else {
        return false;
    };
    match name {
        maps::EGRESS => kind == MapType::DevMap && entries == NEXT_HOP_ENTRIES,
        _ => {
            kind == MapType::PerCpuArray && (key, entries) == (4, 1) && record as usize == size_of::<PerCpu>()
        }
    }
}

fn info(descriptor: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let map = MapData::from_fd(descriptor.try_clone_to_owned()?).map_err(io::Error::other)?;
    map.info().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; BIND_MAGIC_LEN] = *b"\x2amagic!!";

    fn left() -> Vec<Kept> {
        let backing = Backing::in_memory(TableSizes::for_sessions(4), [1, 2], MAGIC).unwrap();
        let kept = |(name, descriptor): (&'static str, BorrowedFd<'_>)| Kept {
            name: name.to_owned(),
            descriptor: descriptor.try_clone_to_owned().unwrap(),
        };
        backing.descriptors().map(kept).collect()
    }

    fn meta(left: &[Kept]) -> Mapping<Meta> {
        let meta = left.iter().find(|kept| kept.name == maps::META).unwrap();
        Mapping::new(meta.descriptor.as_fd(), 1).unwrap()
    }

    fn fault(left: Vec<Kept>) -> String {
        Backing::check(left, MAGIC).unwrap_err().to_string()
    }

    #[test]
    fn what_one_relay_has_left_another_of_its_identity_can_go_on_with() {
        let backing = Backing::check(left(), MAGIC).unwrap().unwrap();
        assert_eq!((backing.sizes(), backing.kind()), (TableSizes::for_sessions(4), BackingKind::Memory));
        let (one, other) = (backing.tables().unwrap(), backing.try_clone().unwrap().tables().unwrap());
        one.slots[3].generation.store(7);
        assert_eq!((other.slots[3].generation.load(), one.hash_key), (7, other.hash_key));
        assert!(Backing::check(Vec::new(), MAGIC).unwrap().is_none());
    }

    #[test]
    fn tables_of_another_identity_layout_or_size_are_not_gone_on_with() {
        let error = Backing::check(left(), *b"\x2bmagic!!").unwrap_err();
        assert!(matches!(error, BackingFault::OtherRelay), "{error}");
        let later = left();
        meta(&later)[0].layout.store(LAYOUT + 1);
        assert!(fault(later).contains("version 2"));
        let never_whole = left();
        meta(&never_whole)[0].layout.store(0);
        assert!(fault(never_whole).contains("version 0"));
        for (slots, buckets) in [(5, 2), (0, 2), (4, 3), (u32::MAX, u32::MAX)] {
            let other = left();
            meta(&other)[0].slots.store(slots);
            meta(&other)[0].buckets.store(buckets);
            assert!(Backing::check(other, MAGIC).is_err(), "{slots} {buckets}");
        }
    }

    #[test]
    fn a_part_that_is_missing_or_another_file_is_named() {
        let names: Vec<String> = left().into_iter().map(|kept| kept.name).collect();
        assert_eq!(names.len(), 7);
        for name in names {
            let without: Vec<Kept> = left().into_iter().filter(|kept| kept.name != name).collect();
            assert_eq!(fault(without), format!("{name} is missing"));
            let replaced = |length| -> Vec<Kept> {
                let other = |kept: Kept| match kept.name == name {
                    true => Kept { descriptor: memory_file(c"other", length).unwrap(), ..kept },
                    false => kept,
                };
                left().into_iter().map(other).collect()
            };
            for length in [0, 1, 1 << 20] {
                let fault = fault(replaced(length));
                assert!(fault.contains(&name) && fault.contains(&format!("{length} bytes")), "{fault}");
            }
        }
        // A file that somebody could shorten under us would be worse than none.
        let file = |kept: Kept| match kept.name == maps::SLOTS {
            true => Kept { descriptor: tempfile::tempfile().unwrap().into(), ..kept },
            false => kept,
        };
        assert!(fault(left().into_iter().map(file).collect()).contains("no sealed memory file"));
    }
}
