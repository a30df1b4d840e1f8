//! The two sides of a session.

/// A side of a session. The connector asked for the session, the target was asked for.
///
/// The discriminants are stored in index entries and sent in bind datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Side {
    /// The agent that sent RelayConnect; it dials.
    Connector = 0,
    /// The agent that had announced itself; it answers.
    Target = 1,
}

impl Side {
    /// Both sides, in the order of their discriminants.
    pub const BOTH: [Side; 2] = [Side::Connector, Side::Target];

    /// The other side of the session.
    #[inline(always)]
    pub const fn other(self) -> Side {
        match self {
            Side::Connector => Side::Target,
            Side::Target => Side::Connector,
        }
    }

    /// The side's place in a pair.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}
