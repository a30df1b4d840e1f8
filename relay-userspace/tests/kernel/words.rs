//! Operations on words of shared memory, as the BPF compiler has made them: LLVM 22 makes an addition without a fetch of
//! a relaxed one whose result is used (llvm-project issue 210280), and the verifier has nothing against that.

use std::thread;

use crate::machine::{Machine, stay_on};
use crate::probe::{Probe, agent, case, load_relay};
use relay_userspace::relay::datapath::TableSizes;

const RUNS: u32 = 2_000_000;

#[test]
fn a_lost_swap_is_seen_as_lost_and_no_addition_is_lost() {
    let Some(machine) = Machine::or_skip("a_lost_swap_is_seen_as_lost_and_no_addition_is_lost") else {
        return;
    };
    let (mut relay, _tables) = load_relay(TableSizes::for_sessions(1));
    let [a, b] = [1, 2].map(|port| agent([10, 1, 0, 1].into(), port));
    let probe = Probe::load(&machine, &mut relay, vec![case(a, b, 64)]);
    let mut runs = 0;
    let lost = loop {
        thread::scope(|scope| {
            for cpu in machine.cpus {
                let probe = &probe;
                scope.spawn(move || {
                    stay_on(cpu);
                    probe.exercise_words(RUNS);
                });
            }
        });
        runs += 2 * u64::from(RUNS);
        let [raised, won, lost, constant, refused, absurd, narrow_and_stored] = probe.words();
        assert_eq!(absurd, 0);
        assert_eq!((raised, won + lost), (won, runs), "each swap is won or lost, and is made if it is won");
        assert_eq!((constant, refused), (0, runs), "a swap that expects something else is not made");
        let (narrow, stored) = (narrow_and_stored as u32, (narrow_and_stored >> 32) as u32);
        assert_eq!(u64::from(narrow), 3 * runs, "every addition is made");
        assert!(stored % 3 == 1 && stored > 1 && stored <= narrow + 1, "{stored}: what is stored is there");
        if lost > 0 {
            break lost;
        }
        assert!(runs < 100 * u64::from(RUNS), "two CPUs never raced");
    };
    println!("{runs} runs on two CPUs, {lost} swaps lost");
}
