//! The times of a session, as the page for operators has them.

use std::time::Duration;

use crate::protocol::bind::BindClient;
use crate::relay::rendezvous::{CONSENT, KEEPALIVE, LEASE, OFFER_LIFETIME};

#[test]
fn the_page_for_operators_has_the_times_that_sessions_live_by() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operate.md");
    let page = std::fs::read_to_string(page).unwrap();
    for (time, since) in [
        (OFFER_LIFETIME, "it was offered"),
        (KEEPALIVE, "a side's last proof"),
        (CONSENT, "a side's last proof; the daemon's start"),
        (CONSENT, "a side's last proof | the agent gives"),
        (LEASE, "a side's last proof"),
    ] {
        let row = format!("| {} s | {since}", time.as_secs());
        assert!(page.contains(&row), "{row}");
    }
    let heard = format!("in the last {} s", BindClient::HEARD_LATELY.as_secs());
    assert!(page.contains(&heard), "{heard}");
    assert!(
        LEASE - KEEPALIVE >= Duration::from_secs(4 * 60) && page.contains("have a daemon back within four")
    );
    let noticed_within = Duration::from_secs(75);
    assert!(CONSENT < noticed_within && page.contains("noticed within 75 s"));
}
