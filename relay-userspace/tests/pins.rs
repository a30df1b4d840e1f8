//! What a relay keeps in a bpffs, in one of the test's own: it is mounted where nobody else sees it, and goes with the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    unsafe_code,
    reason = "in a test a panic is a failure, one that cannot run says why, and unshare is not in std"
)]

mod namespaces;
mod skipping;

use std::fs::{self, Permissions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::Xdp;
use aya_obj::generated::bpf_map_type;
use relay_userspace::config::DatapathMode;
use relay_userspace::identity::NodeId;
use relay_userspace::relay::datapath::{
    Hook, NewTables, OBJECT, Port, Program, Selection, TableSizes, descriptors, ports,
};
use relay_userspace::relay::keeper::{Keeper, Kept, remove_pins};
use relay_userspace::relay::legacy::{Legacy, name_of_link};
use relay_userspace::supervision::Supervision;

use namespaces::{in_namespace, run};

const NODE: NodeId = NodeId::from_bytes([0xa5; 32]);
const LAYOUT: u32 = 3;

/// A bpffs, and the directory in it that a configuration would name.
struct Bpffs {
    mount: PathBuf,
    pins: PathBuf,
}

impl Bpffs {
    /// The relay's own directory.
    fn own(&self) -> PathBuf {
        self.pins.join("a5a5a5a5a5a5a5a5")
    }

    fn layout(&self) -> PathBuf {
        self.own().join("v3")
    }

    fn find(&self) -> (Keeper, Vec<Kept>) {
        self.find_layout(LAYOUT)
    }

    fn find_layout(&self, layout: u32) -> (Keeper, Vec<Kept>) {
        Keeper::find(&mut Supervision::none(), Some(&self.pins), &NODE, layout)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.find().1.into_iter().map(|Kept { name, .. }| name).collect();
        names.sort();
        names
    }
}

/// Runs `test` with a bpffs, or says why it cannot.
fn with_bpffs(name: &str, test: impl FnOnce(Bpffs) + Send) {
    in_namespace(name, || {
        // SAFETY: the call takes no pointers and affects the calling thread alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
        run("mount", "--make-rprivate /");
        let directory = tempfile::tempdir().unwrap();
        run("mount", &format!("-t bpf bpf {}", directory.path().display()));
        let mount = directory.path().to_owned();
        test(Bpffs { pins: mount.join("relay"), mount });
        run("umount", &format!("-l {}", directory.path().display()));
    });
}

/// An array map, 8 bytes an entry.
fn map(entries: u32) -> MapData {
    let array = aya_obj::Map::new_from_params(bpf_map_type::BPF_MAP_TYPE_ARRAY as u32, 4, 8, entries, 0);
    MapData::create(array, "of_a_test", None).unwrap()
}

fn array(map: MapData) -> Array<MapData, u64> {
    Map::Array(map).try_into().unwrap()
}

fn entries(descriptor: OwnedFd) -> u32 {
    MapData::from_fd(descriptor).unwrap().info().unwrap().max_entries()
}

#[test]
fn an_object_that_is_pinned_is_found_by_the_successor_and_lives_without_the_predecessor() {
    with_bpffs(
        "an_object_that_is_pinned_is_found_by_the_successor_and_lives_without_the_predecessor",
        |bpffs| {
            let (keeper, kept) = bpffs.find();
            assert!(keeper.keeps_bpf() && !keeper.keeps_all() && kept.is_empty(), "{}", keeper.why());
            let slots = map(5);
            keeper.keep("SLOTS", slots.fd().as_fd()).unwrap();
            array(slots).set(4, 77, 0).unwrap();
            drop(keeper);

            let [Kept { name, descriptor }] = <[_; 1]>::try_from(bpffs.find().1).unwrap();
            assert_eq!(name, "SLOTS");
            let slots = MapData::from_fd(descriptor).unwrap();
            assert_eq!(array(slots).get(&4, 0).unwrap(), 77);
            let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!([mode(bpffs.own()), mode(bpffs.layout())], [0o700, 0o700]);
        },
    );
}

#[test]
fn a_relay_that_cannot_have_every_interface_at_the_hook_of_its_pins_takes_all_of_them_at_the_other() {
    let name =
        "a_relay_that_cannot_have_every_interface_at_the_hook_of_its_pins_takes_all_of_them_at_the_other";
    if OBJECT.is_none() {
        return skipping::skip(name, "built without the BPF program");
    }
    with_bpffs(name, |bpffs| {
        run("ip", "link add near type veth peer name far");
        let near = ports::named(&["near".to_owned()]).unwrap().remove(0);
        // Its driver has no XDP.
        let lo = Port { name: "lo".to_owned(), index: 1, station: [0; 6], mtu: 1500 };
        let select = |keeper: &Keeper, legacy: &mut Legacy, ports: &[Port]| {
            let new = NewTables {
                sizes: TableSizes::for_sessions(1),
                hash_seed: [1, 2],
                bind_magic: *b"\x01magic!!",
                in_memory_files: false,
            };
            Selection::make(DatapathMode::Auto, ports, new, legacy, keeper).unwrap()
        };
        let (keeper, _) = bpffs.find();
        let before = select(&keeper, &mut Legacy::default(), std::slice::from_ref(&near));
        assert_eq!(before.hook, Some(Hook::Native), "{}", before.why);
        for (interface, link) in before.program.iter().flat_map(Program::links) {
            keeper.keep(&name_of_link(interface), link).unwrap();
        }
        drop((before, keeper));

        let (keeper, kept) = bpffs.find();
        let mut legacy = Legacy::of(kept, *b"\x01magic!!");
        assert_eq!(legacy.links[&near.index].hook, Hook::Native);
        let now = select(&keeper, &mut legacy, &[near, lo]);
        assert_eq!(now.hook, Some(Hook::Generic), "{}", now.why);
        assert_eq!(now.program.iter().flat_map(Program::attached).count(), 2);
        assert!(legacy.links.is_empty(), "{legacy:?}");
    });
}

#[test]
fn an_attachment_that_is_pinned_stays_when_its_relay_is_gone_until_the_pin_is_removed() {
    let name = "an_attachment_that_is_pinned_stays_when_its_relay_is_gone_until_the_pin_is_removed";
    let Some(object) = OBJECT else { return skipping::skip(name, "built without the BPF program") };
    with_bpffs(name, |bpffs| {
        const LOOPBACK: u32 = 1;
        let attached = || String::from_utf8(run("ip", "link show dev lo")).unwrap().contains("xdpgeneric");
        let (keeper, _) = bpffs.find();
        {
            let mut ebpf = aya::Ebpf::load(object).unwrap();
            let program: &mut Xdp = ebpf.program_mut("relay").unwrap().try_into().unwrap();
            program.load().unwrap();
            let program = program.fd().unwrap().as_fd();
            let link = descriptors::create_link(program, LOOPBACK, Hook::Generic).unwrap();
            keeper.keep("link-1", link.as_fd()).unwrap();
        }
        drop(keeper);
        assert!(attached());
        let (keeper, kept) = bpffs.find();
        assert_eq!(descriptors::interface_of_link(kept[0].descriptor.as_fd()).unwrap(), Some(LOOPBACK));
        drop((keeper, kept));
        assert!(attached());

        assert!(remove_pins(&bpffs.pins, &NODE).unwrap());
        // The kernel detaches when it comes to it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while attached() {
            assert!(Instant::now() < deadline, "still attached");
        }
        assert!(!bpffs.own().exists() && bpffs.pins.exists());
        assert!(!remove_pins(&bpffs.pins, &NODE).unwrap());
    });
}

#[test]
fn another_object_takes_a_pins_place_and_the_same_one_leaves_it() {
    with_bpffs("another_object_takes_a_pins_place_and_the_same_one_leaves_it", |bpffs| {
        let (keeper, _) = bpffs.find();
        let (first, second) = (map(1), map(2));
        let inode = || {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata(bpffs.layout().join("META")).unwrap().ino()
        };
        keeper.keep("META", first.fd().as_fd()).unwrap();
        let pinned = inode();
        keeper.keep("META", first.fd().as_fd()).unwrap();
        assert_eq!(inode(), pinned);
        keeper.keep("META", second.fd().as_fd()).unwrap();
        assert_ne!(inode(), pinned);
        drop(keeper);
        let [Kept { descriptor, .. }] = <[_; 1]>::try_from(bpffs.find().1).unwrap();
        assert_eq!(entries(descriptor), 2);
    });
}

#[test]
fn what_is_let_go_is_not_found_and_letting_go_of_nothing_is_no_error() {
    with_bpffs("what_is_let_go_is_not_found_and_letting_go_of_nothing_is_no_error", |bpffs| {
        let (keeper, _) = bpffs.find();
        for name in ["META", "SLOTS"] {
            keeper.keep(name, map(1).fd().as_fd()).unwrap();
        }
        keeper.let_go("META").unwrap();
        keeper.let_go("META").unwrap();
        drop(keeper);
        assert_eq!(bpffs.names(), ["SLOTS"]);
        bpffs.find().0.clear().unwrap();
        assert!(!bpffs.own().exists());
        assert_eq!(bpffs.names(), [""; 0]);
    });
}

#[test]
fn what_cannot_be_pinned_is_not_kept_and_that_is_no_error() {
    with_bpffs("what_cannot_be_pinned_is_not_kept_and_that_is_no_error", |bpffs| {
        let (keeper, _) = bpffs.find();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        keeper.keep("udp4-0", socket.as_fd()).unwrap();
        drop(keeper);
        assert_eq!(bpffs.names(), [""; 0]);
    });
}

#[test]
fn a_relay_that_has_pinned_nothing_leaves_no_directory() {
    with_bpffs("a_relay_that_has_pinned_nothing_leaves_no_directory", |bpffs| {
        let (keeper, _) = bpffs.find();
        assert!(bpffs.layout().exists());
        drop(keeper);
        assert!(!bpffs.own().exists());
    });
}

#[test]
fn a_pin_that_did_not_get_its_name_before_a_crash_is_not_found_and_goes() {
    with_bpffs("a_pin_that_did_not_get_its_name_before_a_crash_is_not_found_and_goes", |bpffs| {
        let (keeper, _) = bpffs.find();
        keeper.keep("SLOTS", map(1).fd().as_fd()).unwrap();
        let unfinished = bpffs.layout().join("META~");
        descriptors::pin(map(1).fd().as_fd(), &unfinished).unwrap();
        drop(keeper);
        assert_eq!(bpffs.names(), ["SLOTS"]);
        assert!(!unfinished.exists());
        let (keeper, _) = bpffs.find();
        // One that came up since is in nobody's way.
        descriptors::pin(map(1).fd().as_fd(), &unfinished).unwrap();
        keeper.keep("META", map(1).fd().as_fd()).unwrap();
        drop(keeper);
        assert_eq!(bpffs.names(), ["META", "SLOTS"]);
    });
}

#[test]
fn pins_of_another_layout_are_named_and_left_alone_until_all_is_cleared() {
    with_bpffs("pins_of_another_layout_are_named_and_left_alone_until_all_is_cleared", |bpffs| {
        let (keeper, _) = bpffs.find();
        keeper.keep("SLOTS", map(1).fd().as_fd()).unwrap();
        assert!(keeper.foreign().is_empty());
        drop(keeper);

        let (keeper, kept) = bpffs.find_layout(LAYOUT + 1);
        assert!(kept.is_empty());
        assert_eq!(keeper.foreign(), [bpffs.layout()]);
        drop(keeper);
        assert_eq!(bpffs.names(), ["SLOTS"]);
        bpffs.find_layout(LAYOUT + 1).0.clear().unwrap();
        assert!(!bpffs.own().exists());
    });
}

#[test]
fn a_directory_that_others_may_have_put_pins_in_is_not_used() {
    with_bpffs("a_directory_that_others_may_have_put_pins_in_is_not_used", |bpffs| {
        let is_refused = |what: &str| {
            let (keeper, kept) = bpffs.find();
            assert!(!keeper.keeps_bpf() && kept.is_empty(), "{what}");
            assert!(keeper.why().contains("relay"), "it is named: {}", keeper.why());
        };
        bpffs.find().0.keep("SLOTS", map(1).fd().as_fd()).unwrap();
        for directory in [bpffs.own(), bpffs.layout()] {
            fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
            is_refused("another mode");
            fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
            chown(&directory, Some(65_534), None).unwrap();
            is_refused("another owner");
            chown(&directory, Some(0), None).unwrap();
        }
        fs::set_permissions(&bpffs.pins, Permissions::from_mode(0o777)).unwrap();
        is_refused("above it anybody can put another in its place");
        fs::set_permissions(&bpffs.pins, Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(bpffs.names(), ["SLOTS"], "but not in a sticky directory");
    });
}

#[test]
fn without_a_bpffs_that_can_be_written_nobody_keeps() {
    with_bpffs("without_a_bpffs_that_can_be_written_nobody_keeps", |bpffs| {
        let find = |path: &Path| Keeper::find(&mut Supervision::none(), Some(path), &NODE, LAYOUT).0;
        let elsewhere = tempfile::tempdir().unwrap();
        let keeper = find(elsewhere.path());
        assert!(!keeper.keeps_bpf() && keeper.why().contains("not in a bpffs"), "{}", keeper.why());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is made there");

        assert!(find(&bpffs.pins).keeps_bpf());
        run("mount", &format!("-o remount,ro {}", bpffs.mount.display()));
        for path in [&bpffs.pins, &bpffs.mount.join("other")] {
            let keeper = find(path);
            assert!(!keeper.keeps_bpf() && keeper.why().contains("Read-only"), "{}", keeper.why());
        }
    });
}

#[test]
fn removing_pins_follows_no_link_out_of_the_directory() {
    with_bpffs("removing_pins_follows_no_link_out_of_the_directory", |bpffs| {
        let (keeper, _) = bpffs.find();
        keeper.keep("SLOTS", map(1).fd().as_fd()).unwrap();
        let outside = bpffs.mount.join("outside");
        fs::create_dir(&outside).unwrap();
        let precious = outside.join("precious");
        descriptors::pin(map(1).fd().as_fd(), &precious).unwrap();
        symlink(&outside, bpffs.own().join("v4")).unwrap();
        symlink(&precious, bpffs.layout().join("link")).unwrap();

        assert!(remove_pins(&bpffs.pins, &NODE).is_err(), "its relay runs");
        drop(keeper);
        assert!(remove_pins(&bpffs.pins, &NODE).unwrap());
        assert!(precious.exists() && !bpffs.layout().exists());
    });
}

#[test]
fn a_second_relay_of_the_same_identity_does_not_touch_the_pins_of_the_first() {
    with_bpffs("a_second_relay_of_the_same_identity_does_not_touch_the_pins_of_the_first", |bpffs| {
        let (first, _) = bpffs.find();
        first.keep("SLOTS", map(1).fd().as_fd()).unwrap();
        let (second, kept) = bpffs.find();
        assert!(!second.keeps_bpf() && kept.is_empty());
        assert!(second.why().contains("a relay of the same identity"), "{}", second.why());
        drop((first, second));
        assert_eq!(bpffs.names(), ["SLOTS"]);
    });
}
