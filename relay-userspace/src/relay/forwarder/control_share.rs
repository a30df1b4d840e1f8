//! How much of what comes by control's sockets may be the sessions' own: pure.
//!
//! Inner QUIC begins as QUIC to the relay does, so the kernel puts both into one queue. The readers of that queue have to
//! empty it faster than anyone fills it. To forward a datagram costs several times what it costs to take and drop it, so
//! of each flow a share is forwarded, and the rest is dropped first.

use std::time::Duration;

use relay_common::index::SlotSide;

use crate::clock::MonoTime;

/// Datagrams that a side may send at once. A handshake takes 2 to 4 a direction, and a few more where something is lost
/// or certificates are long.
const BURST: u32 = 128;

/// Time for each further one: 128 a second, some 16 handshakes begun in every second. A thousand flows that use all of it
/// are what one reader forwards in half of its time.
const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / 128);

/// The shares of all sides, in memory that does not grow: eight bytes for each side that the tables have room for, of which
/// what is never used is never touched.
#[derive(Debug)]
pub struct ControlShares {
    /// For each side, when it has its whole burst again.
    whole_at: Box<[u64]>,
}

impl ControlShares {
    /// Everyone has a whole burst, the sides of `slots` slots.
    pub fn new(slots: u32) -> ControlShares {
        ControlShares { whole_at: vec![0; slots as usize * 2].into_boxed_slice() }
    }

    /// Takes one datagram from the share of `at`. False: nothing is left of it.
    pub fn take(&mut self, at: SlotSide, now: MonoTime) -> bool {
        let place = at.slot as usize * 2 + at.side as usize;
        let Some(whole_at) = self.whole_at.get_mut(place) else { return false };
        let after = MonoTime(*whole_at).max(now) + INTERVAL;
        let within = after <= now + INTERVAL * BURST;
        if within {
            *whole_at = after.0;
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use relay_common::Side;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const START: MonoTime = MonoTime(5_000_000_000);

    fn at(slot: u32, side: Side) -> SlotSide {
        SlotSide { slot, side }
    }

    fn taken(shares: &mut ControlShares, at: SlotSide, now: MonoTime) -> usize {
        (0..1000).filter(|_| shares.take(at, now)).count()
    }

    #[test]
    fn a_side_has_a_burst_and_then_a_steady_rate() {
        let mut shares = ControlShares::new(2048);
        let side = at(3, Side::Connector);
        assert_eq!(taken(&mut shares, side, START), 128);
        assert_eq!(taken(&mut shares, side, START + SECOND / 4), 32);
        assert_eq!(taken(&mut shares, side, START + SECOND / 4), 0, "what is refused costs nothing further");
        assert_eq!(taken(&mut shares, side, START + SECOND / 2), 32);
    }

    #[test]
    fn an_idle_side_saves_no_more_than_a_burst() {
        let mut shares = ControlShares::new(2048);
        let side = at(3, Side::Connector);
        taken(&mut shares, side, START);
        assert_eq!(taken(&mut shares, side, START + SECOND * 3600), 128);
    }

    #[test]
    fn no_side_uses_anothers_share() {
        let mut shares = ControlShares::new(2048);
        for slot in 0..2048 {
            for side in Side::BOTH {
                assert_eq!(taken(&mut shares, at(slot, side), START), 128);
            }
        }
        assert_eq!(taken(&mut shares, at(2048, Side::Connector), START), 0, "there is no such slot");
    }
}
