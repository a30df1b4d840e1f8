//! The VLAN tag of a frame (IEEE 802.1Q section 9): four bytes between the MAC addresses and the ether type.

use crate::frame::{Frame, field};
use crate::header::{ETH_TYPE, ETHER_TYPE_VLAN, TAG_CONTROL, TAGGED_ETH_LEN, TAGGED_ETH_TYPE};
use crate::reason::Reason;

/// Bytes of a tag.
const TAG_LEN: usize = 4;

/// The bits of a tag's control information that number the VLAN; the others are priority.
const VLAN_MASK: u16 = 0xfff;

/// The one tag a frame carries, or none. It stays as it came, priority included.
///
/// Its control information. A tag without VLAN (number 0) is none that could be kept, so 0 says that there is no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u16);

impl Tag {
    /// No tag.
    pub const NONE: Tag = Tag(0);

    /// The tag of a frame that has one, and the ether type behind it, as it stands there.
    ///
    /// # Errors
    /// [`Reason::Truncated`], or [`Reason::VlanTagged`] if the tag gives a priority but names no VLAN.
    #[inline(always)]
    pub(crate) fn read<F: Frame>(frame: &F) -> Result<(Tag, u16), Reason> {
        let ethernet = frame.window::<TAGGED_ETH_LEN>(0).ok_or(Reason::Truncated)?;
        let tag = Tag(u16::from_be_bytes(field::<TAG_CONTROL, 2, _>(ethernet)));
        if tag.vlan() == 0 {
            return Err(Reason::VlanTagged);
        }
        Ok((tag, u16::from_ne_bytes(field::<TAGGED_ETH_TYPE, 2, _>(ethernet))))
    }

    /// The number of its VLAN, 0 without tag.
    #[inline(always)]
    pub const fn vlan(self) -> u16 {
        self.0 & VLAN_MASK
    }

    /// How many bytes further back everything behind the MAC addresses stands.
    #[inline(always)]
    pub const fn shift(self) -> usize {
        if self.0 == 0 { 0 } else { TAG_LEN }
    }

    /// The bytes of the tag, none if there is no tag.
    #[inline(always)]
    pub(crate) const fn bytes(self) -> Option<[u8; TAG_LEN]> {
        if self.0 == 0 {
            return None;
        }
        let [[a, b], [c, d]] = [ETHER_TYPE_VLAN.to_ne_bytes(), self.0.to_be_bytes()];
        Some([a, b, c, d])
    }
}

const _: () = assert!(TAGGED_ETH_TYPE == ETH_TYPE + TAG_LEN);
