//! What both ends of a control connection ask of QUIC.

use quinn::{AckFrequencyConfig, TransportConfig, VarInt};

/// The settings of a connection that carries few and small messages, each way on streams that the agent opens.
pub fn control_transport() -> TransportConfig {
    // Most packets of a control connection are answered by a message, which carries the acknowledgement as well. A packet
    // of its own for every other one, as is usual, would be a third of all packets of a handshake. What is not answered is
    // acknowledged after 25 ms as ever. Asked of peers that know the extension (draft-ietf-quic-ack-frequency).
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(VarInt::from_u32(PACKETS_WITHOUT_ACKNOWLEDGEMENT));
    let mut transport = TransportConfig::default();
    transport
        .ack_frequency_config(Some(acknowledgements))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        // Probing for larger packets would cost more than it brings.
        .mtu_discovery_config(None);
    transport
}

/// So many packets may wait for an acknowledgement without one at once.
const PACKETS_WITHOUT_ACKNOWLEDGEMENT: u32 = 8;
