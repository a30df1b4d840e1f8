//! What a relay keeps in a bpffs it can still keep and let go of once it is restricted to the files that it needs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    unsafe_code,
    reason = "in a test a panic is a failure, one that cannot run says why, and unshare is not in std"
)]

mod namespaces;
mod skipping;

use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;

use aya::maps::MapData;
use aya_obj::generated::bpf_map_type;
use relay_userspace::identity::NodeId;
use relay_userspace::privilege::file_access::{self, Places};
use relay_userspace::relay::keeper::{Keeper, Kept};
use relay_userspace::supervision::Supervision;

use namespaces::{in_namespace, run};

#[test]
fn a_daemon_that_may_open_few_files_pins_adopts_and_unpins() {
    in_namespace("a_daemon_that_may_open_few_files_pins_adopts_and_unpins", || {
        // SAFETY: the call takes no pointers and affects the calling thread alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
        run("mount", "--make-rprivate /");
        let directory = tempfile::tempdir().unwrap();
        run("mount", &format!("-t bpf bpf {}", directory.path().display()));
        // Not there yet: it is made by who pins.
        let pins = directory.path().join("relay");

        // A thread of its own: what it may not open, this one may.
        thread::scope(|scope| scope.spawn(|| pin_and_unpin(&pins)).join()).unwrap();

        run("umount", &format!("-l {}", directory.path().display()));
    });
}

fn pin_and_unpin(pins: &Path) {
    let array = aya_obj::Map::new_from_params(bpf_map_type::BPF_MAP_TYPE_ARRAY as u32, 4, 8, 1, 0);
    let map = MapData::create(array, "of_a_test", None).unwrap();
    file_access::restrict(&Places { written: vec![pins.to_owned()], ..Places::default() }).unwrap();
    let find = || Keeper::find(&mut Supervision::none(), Some(pins), &NodeId::from_bytes([1; 32]), 1);

    let (keeper, _none) = find();
    assert!(keeper.keeps_bpf(), "{}", keeper.why());
    keeper.keep("SLOTS", map.fd().as_fd()).unwrap();
    drop(keeper);
    let (successor, kept) = find();
    assert_eq!(kept.iter().map(|Kept { name, .. }| name.as_str()).collect::<Vec<_>>(), ["SLOTS"]);
    successor.let_go("SLOTS").unwrap();
    drop(successor);
    assert!(find().1.is_empty());
}
