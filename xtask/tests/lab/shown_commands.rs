//! Every command that the pages of README.md, docs and deploy and the help texts show is run, here as it stands there but for
//! what is the reader's to fill in, or by who is named in `elsewhere.rs`. `sudo`, `journalctl` and `cargo` are stand-ins here
//! (`stage.rs`), since these hosts have no services; `walk.rs` has machines with the real ones, and types the blocks of
//! deploy/README.md.

mod checkout;
mod elsewhere;
mod help;
mod operator;
mod pages;
mod readme;
mod shell;
mod stage;

use std::path::Path;

use self::pages::Pages;
use self::stage::Stage;
use super::world::World;

#[test]
fn every_command_that_pages_and_help_show_is_run() {
    let name = "every_command_that_pages_and_help_show_is_run";
    let Some(world) = World::new(name) else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut pages = Pages::read(root);
    pages.add_helps(&world.binary);
    elsewhere::note(&mut pages, root);
    let mut stage = Stage::set(world);

    let mut reader = readme::begin(&stage, &mut pages);
    operator::troubleshoot(&stage, &mut pages);
    operator::look(&stage, &mut pages);
    operator::operate(&mut stage, &mut pages, &reader);
    help::examples(&mut stage, &mut pages, &mut reader);
    readme::end(&mut stage, &mut pages, reader);
    checkout::lab(&stage, &mut pages);

    let not_run = pages.not_run();
    assert!(not_run.is_empty(), "{}", not_run.join("\n"));
}
