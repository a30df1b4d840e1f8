//! Which datagrams leave together: pure.
//!
//! The kernel takes many datagrams of one length with the same headers as one message and cuts it itself, which costs
//! little more than one datagram. Those of one flow are gathered from all over a batch; their order is kept.

use std::net::{IpAddr, SocketAddr};

use relay_common::index::SlotSide;

use super::arrivals::Place;

/// Datagrams in one message, at most: UDP_MAX_SEGMENTS of linux/udp.h before Linux 6.9.
pub const MAX_SEGMENTS: usize = 64;

/// Payload bytes in one message, at most: what an IPv4 packet can be long, without its headers.
pub const MAX_BYTES: usize = 65_507;

/// The headers a sent datagram gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination.
    pub to: SocketAddr,
    /// Source address, one of this host's; the source port is the socket's.
    pub from: IpAddr,
    /// TOS or traffic class: DSCP and ECN.
    pub tos: u8,
    /// TTL or hop limit, at least 1.
    pub ttl: u8,
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Its payload.
    pub payload: Place,
    /// Its headers.
    pub headers: Headers,
    /// Whose it is. One side's datagrams keep their order.
    pub at: SlotSide,
    /// It arrived in fragments and may leave in fragments.
    pub fragmented: bool,
}

/// Datagrams that leave together, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The headers of all of them.
    pub headers: Headers,
    /// Whose they are.
    pub at: SlotSide,
    /// Payload bytes of each but the last, which may be shorter.
    pub segment_len: usize,
    /// How many there are.
    pub count: usize,
    /// Payload bytes of all of them.
    pub bytes: usize,
    /// It is one that arrived in fragments.
    pub fragmented: bool,
    first: usize,
    last: usize,
    is_full: bool,
}

/// A batch of datagrams, by messages.
#[derive(Debug, Default)]
pub struct Gathering {
    messages: Vec<Message>,
    /// Each payload, and the number of the next in its message.
    payloads: Vec<(Place, usize)>,
    /// The message that a side's next datagram may join: the latest of its messages, unless another side has taken the
    /// place. Which batch that was in tells it from what is left of earlier ones.
    latest: Vec<(u32, u32)>,
    batch: u32,
    together: bool,
}

/// Places in `latest`. A side's place is its number's rest; sides that share one are gathered less.
const LATEST: usize = 2048;

impl Gathering {
    /// An empty batch.
    pub fn new() -> Gathering {
        Gathering { latest: vec![(0, 0); LATEST], batch: 1, together: true, ..Gathering::default() }
    }

    /// Adds a datagram: to its side's latest message if it is like those in it, else in a message of its own.
    pub fn add(&mut self, departure: &Departure) {
        let Departure { payload, headers, at, fragmented } = *departure;
        let number = self.payloads.len();
        self.payloads.push((payload, number));
        let place = (at.slot as usize * 2 + at.side as usize) % LATEST;
        let Some(latest) = self.latest.get_mut(place) else { return };
        if latest.0 == self.batch
            && let Some(message) = self.messages.get_mut(latest.1 as usize)
            && message.takes(departure)
        {
            if let Some((_, next)) = self.payloads.get_mut(message.last) {
                *next = number;
            }
            message.last = number;
            message.count += 1;
            message.bytes += payload.len;
            // The kernel cuts equal pieces: what follows a shorter one would be taken for a part of it.
            message.is_full = payload.len < message.segment_len;
            return;
        }
        *latest = (self.batch, self.messages.len() as u32);
        self.messages.push(Message {
            headers,
            at,
            segment_len: payload.len,
            count: 1,
            bytes: payload.len,
            fragmented,
            first: number,
            last: number,
            is_full: fragmented || !self.together,
        });
    }

    /// The messages, each side's in the order of its datagrams.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The payloads of `message`, in their order.
    pub fn payloads(&self, message: &Message) -> impl Iterator<Item = Place> {
        let mut next = message.first;
        (0..message.count).map_while(move |_| {
            let (place, after) = *self.payloads.get(next)?;
            next = after;
            Some(place)
        })
    }

    /// Datagrams in the batch.
    pub fn len(&self) -> usize {
        self.payloads.len()
    }

    /// Begins another batch, whose datagrams are to leave `together` or one by one.
    pub fn clear(&mut self, together: bool) {
        self.together = together;
        self.messages.clear();
        self.payloads.clear();
        self.batch = self.batch.wrapping_add(1);
    }
}

impl Message {
    /// Whether the datagram may leave in this message, as its last so far.
    fn takes(&self, departure: &Departure) -> bool {
        let Departure { payload, headers, at, fragmented } = departure;
        !self.is_full
            && !fragmented
            && self.at == *at
            && self.headers == *headers
            && (1..=self.segment_len).contains(&payload.len)
            && self.count < MAX_SEGMENTS
            && self.bytes + payload.len <= MAX_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use relay_common::Side;

    use super::*;

    const HEADERS: Headers = Headers {
        to: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7),
        from: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        tos: 0,
        ttl: 63,
    };

    fn side(number: u32) -> SlotSide {
        SlotSide {
            slot: number / 2,
            side: if number.is_multiple_of(2) { Side::Connector } else { Side::Target },
        }
    }

    /// Datagrams of one side, of these lengths.
    fn of_lengths(lengths: &[usize]) -> Vec<Departure> {
        let mut start = 0;
        let departure = |len: &usize| {
            start += len;
            let payload = Place { start: start - len, len: *len };
            Departure { payload, headers: HEADERS, at: side(0), fragmented: false }
        };
        lengths.iter().map(departure).collect()
    }

    /// How many datagrams leave in each message.
    fn counts(departures: &[Departure]) -> Vec<usize> {
        let mut gathering = Gathering::new();
        departures.iter().for_each(|departure| gathering.add(departure));
        gathering.messages().iter().map(|message| message.count).collect()
    }

    #[test]
    fn equal_datagrams_leave_together_and_a_shorter_one_ends_their_message() {
        assert_eq!(counts(&of_lengths(&[9, 9, 9])), [3]);
        assert_eq!(counts(&of_lengths(&[9, 9, 5, 5, 9])), [3, 1, 1]);
        assert_eq!(counts(&of_lengths(&[5, 9, 9])), [1, 2]);
    }

    #[test]
    fn an_empty_datagram_leaves_alone() {
        assert_eq!(counts(&of_lengths(&[0, 0, 9, 0, 9])), [1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_message_holds_no_more_than_the_kernel_takes() {
        assert_eq!(counts(&of_lengths(&[1; 130])), [64, 64, 2]);
        assert_eq!(counts(&of_lengths(&[1472; 50])), [44, 6]);
        assert_eq!(counts(&of_lengths(&[40_000, 25_507, 40_000, 25_508])), [2, 1, 1]);
    }

    #[test]
    fn a_marked_datagram_leaves_its_run() {
        let mut departures = of_lengths(&[9; 5]);
        departures[2].headers.tos = 3;
        assert_eq!(counts(&departures), [2, 1, 2]);
    }

    #[test]
    fn a_datagram_that_arrived_in_fragments_leaves_alone() {
        let mut departures = of_lengths(&[9; 5]);
        departures[2].fragmented = true;
        assert_eq!(counts(&departures), [2, 1, 2]);
    }

    #[test]
    fn where_nothing_is_to_leave_together_each_datagram_leaves_alone() {
        let mut gathering = Gathering::new();
        gathering.clear(false);
        of_lengths(&[9; 3]).iter().for_each(|departure| gathering.add(departure));
        assert_eq!(gathering.messages().len(), 3);
    }

    #[test]
    fn sides_take_turns_and_are_gathered_all_the_same() {
        let mut departures = of_lengths(&[9; 6]);
        for (number, departure) in departures.iter_mut().enumerate() {
            departure.at = side(number as u32 % 3);
        }
        assert_eq!(counts(&departures), [2, 2, 2]);
    }

    #[test]
    fn nothing_of_an_earlier_batch_is_joined() {
        let mut gathering = Gathering::new();
        let departures = of_lengths(&[9, 9]);
        gathering.add(&departures[0]);
        gathering.clear(true);
        assert_eq!((gathering.len(), gathering.messages().len()), (0, 0));
        gathering.add(&departures[1]);
        let message = gathering.messages()[0];
        assert_eq!(gathering.payloads(&message).collect::<Vec<_>>(), [departures[1].payload]);
    }

    fn departures() -> impl Strategy<Value = Vec<Departure>> {
        let lengths = prop_oneof![Just(0), Just(100), Just(1200), 0..1500usize, Just(30_000)];
        // The last two sides share their place.
        let sides = prop_oneof![0..3u32, Just(LATEST as u32)];
        let one = (lengths, sides, prop::bool::weighted(0.1), prop::bool::weighted(0.1), 0..2u16);
        prop::collection::vec(one, 0..300).prop_map(|all| {
            let mut start = 0;
            let departure = |(len, number, fragmented, marked, port)| {
                start += len;
                let tos = if marked { 3 } else { 0 };
                let headers = Headers { to: SocketAddr::new(HEADERS.from, 7 + port), tos, ..HEADERS };
                let payload = Place { start: start - len, len };
                Departure { payload, headers, at: side(number), fragmented }
            };
            all.into_iter().map(departure).collect()
        })
    }

    proptest! {
        /// A forwarder that sends one by one is what the messages are compared with.
        #[test]
        fn each_sides_datagrams_leave_once_in_order_and_as_they_were_to_be(departures in departures()) {
            let mut gathering = Gathering::new();
            departures.iter().for_each(|departure| gathering.add(departure));
            let mut left: HashMap<_, Vec<_>> = HashMap::new();
            for message in gathering.messages() {
                let payloads: Vec<_> = gathering.payloads(message).collect();
                let Message { headers, at, segment_len, count, bytes, fragmented, .. } = *message;
                prop_assert_eq!(payloads.len(), count);
                prop_assert_eq!(payloads.iter().map(|payload| payload.len).sum::<usize>(), bytes);
                prop_assert!(count == 1 || (count <= MAX_SEGMENTS && bytes <= MAX_BYTES && !fragmented));
                prop_assert!(payloads[..count - 1].iter().all(|payload| payload.len == segment_len));
                prop_assert!(payloads[count - 1].len <= segment_len);
                prop_assert!(count == 1 || payloads[count - 1].len > 0);
                let of_side = left.entry((at.slot, at.side as u8)).or_default();
                of_side.extend(payloads.into_iter().map(|payload| Departure { payload, headers, at, fragmented }));
            }
            let mut expected: HashMap<_, Vec<_>> = HashMap::new();
            for departure in departures {
                expected.entry((departure.at.slot, departure.at.side as u8)).or_default().push(departure);
            }
            prop_assert_eq!(left, expected);
        }
    }
}
