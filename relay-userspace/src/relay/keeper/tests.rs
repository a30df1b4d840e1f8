//! What a keeper says to a supervisor, heard on a socket of the test's own. Pins need a bpffs: tests/pins.rs.

use std::fs::File;
use std::os::fd::AsFd as _;

use super::*;
use crate::supervision::listener::Listener;

const NODE: NodeId = NodeId::from_bytes([7; 32]);

/// A keeper to which `given` was handed over.
fn keeper(listener: &Listener, given: Vec<(&str, &File)>) -> (Keeper, Vec<Kept>) {
    let copy = |(name, file): (&str, &File)| (name.to_owned(), file.try_clone().unwrap().into());
    let given = given.into_iter().map(copy).collect();
    Keeper::find(&mut Supervision::keeping(listener.connected(), given), None, &NODE, 1)
}

fn file() -> File {
    tempfile::tempfile().unwrap()
}

#[test]
fn a_descriptor_goes_to_the_supervisor_with_its_name_and_is_not_polled_there() {
    let (listener, file) = (Listener::open(), file());
    let (keeper, kept) = keeper(&listener, Vec::new());
    assert!(keeper.keeps_all() && keeper.keeps_bpf() && kept.is_empty());
    keeper.keep("udp4-0", file.as_fd()).unwrap();
    let [(removal, none), (stored, descriptors)] = <[_; 2]>::try_from(listener.heard()).unwrap();
    assert_eq!((removal.as_str(), none.len()), ("FDSTOREREMOVE=1 FDNAME=udp4-0", 0));
    assert_eq!(stored, "FDSTORE=1 FDNAME=udp4-0 FDPOLL=0");
    let same = |descriptor: &OwnedFd| {
        object::Object::of(descriptor.as_fd()).unwrap() == object::Object::of(file.as_fd()).unwrap()
    };
    assert!(matches!(&descriptors[..], [descriptor] if same(descriptor)));
}

#[test]
fn what_the_supervisor_has_already_is_not_sent_again() {
    let (listener, file) = (Listener::open(), file());
    let (keeper, kept) = keeper(&listener, vec![("SLOTS", &file)]);
    let [Kept { name, descriptor }] = <[_; 1]>::try_from(kept).unwrap();
    assert_eq!(name, "SLOTS");
    keeper.keep("SLOTS", descriptor.as_fd()).unwrap();
    keeper.keep("SLOTS", file.as_fd()).unwrap();
    assert_eq!(listener.said(), [""; 0]);
}

#[test]
fn another_descriptor_of_a_name_takes_the_place_of_the_first() {
    let (listener, first, second) = (Listener::open(), file(), file());
    let (keeper, _) = keeper(&listener, vec![("META", &first)]);
    keeper.keep("META", second.as_fd()).unwrap();
    assert_eq!(listener.said(), ["FDSTOREREMOVE=1 FDNAME=META", "FDSTORE=1 FDNAME=META FDPOLL=0"]);
}

#[test]
fn what_is_let_go_is_removed_from_the_store_and_may_be_kept_again() {
    let (listener, file) = (Listener::open(), file());
    let (keeper, _) = keeper(&listener, vec![("META", &file)]);
    keeper.let_go("META").unwrap();
    assert_eq!(listener.said(), ["FDSTOREREMOVE=1 FDNAME=META"]);
    keeper.keep("META", file.as_fd()).unwrap();
    assert_eq!(listener.said().len(), 2);
}

#[test]
fn clearing_removes_everything_that_was_handed_over_or_kept() {
    let (listener, one, other) = (Listener::open(), file(), file());
    let (keeper, _) = keeper(&listener, vec![("META", &one)]);
    keeper.keep("SLOTS", other.as_fd()).unwrap();
    listener.said();
    keeper.clear().unwrap();
    assert_eq!(listener.said(), ["FDSTOREREMOVE=1 FDNAME=META", "FDSTOREREMOVE=1 FDNAME=SLOTS"]);
}

#[test]
fn of_a_name_that_stands_for_two_things_nothing_is_adopted() {
    let (listener, one, other) = (Listener::open(), file(), file());
    let (_, kept) = keeper(&listener, vec![("META", &one), ("SLOTS", &one), ("META", &other)]);
    assert_eq!(kept.iter().map(|kept| kept.name.as_str()).collect::<Vec<_>>(), ["SLOTS"]);
    assert_eq!(listener.said(), ["FDSTOREREMOVE=1 FDNAME=META"]);
    // The same thing twice is one.
    let (_, kept) = keeper(&listener, vec![("META", &one), ("META", &one)]);
    assert_eq!((kept.len(), listener.said().len()), (1, 0));
}

#[test]
fn a_descriptor_of_somebody_elses_naming_is_closed_and_left_where_it_is() {
    let (listener, file) = (Listener::open(), file());
    let (_, kept) = keeper(&listener, vec![("my.socket", &file), ("", &file)]);
    assert_eq!((kept.len(), listener.said().len()), (0, 0));
}

#[test]
fn a_name_that_a_pin_or_a_list_of_names_cannot_have_is_refused_by_every_keeper() {
    let file = file();
    for wrong in ["", "a.b", "a:b", "../a", "a\nb", "link 1", &"a".repeat(65)] {
        let refused = Keeper::nobody().keep(wrong, file.as_fd()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{wrong}");
    }
    Keeper::nobody().keep("link-4_a", file.as_fd()).unwrap();
}

#[test]
fn where_there_is_neither_supervisor_nor_bpffs_nobody_keeps_and_it_says_why() {
    let directory = tempfile::tempdir().unwrap();
    for (bpffs, why) in [(None, "datapath.bpffs is empty"), (Some(directory.path()), "mount -t bpf")] {
        let (keeper, kept) = Keeper::find(&mut Supervision::none(), bpffs, &NODE, 1);
        assert!(!keeper.keeps_bpf() && kept.is_empty());
        assert!(keeper.why().contains(why), "{}", keeper.why());
    }
}
