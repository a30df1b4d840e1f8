//! The relay's sign of life: the driver's loop has answered how it is.

use tokio::sync::{mpsc, oneshot};

use super::report::Status;
use crate::admin::{Asked, Request};
use crate::supervision::Ask;

/// Asks the driver as a command would.
pub struct AskDriver(pub mpsc::Sender<Asked>);

impl Ask for AskDriver {
    async fn ask(&mut self) -> Option<String> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Asked { request: Request::Status, answer }).await.ok()?;
        let status = answered
            .await
            .ok()?
            .and_then(|status| serde_json::from_value::<Status>(status).map_err(|error| error.to_string()));
        // Whatever keeps it from saying how it is: its loop turns.
        Some(status.map_or_else(|fault| fault, |status| line(&status)))
    }
}

/// As `systemctl status` shows it.
fn line(status: &Status) -> String {
    let Status { datapath, table, agents, draining, .. } = status;
    let draining = if *draining { ", draining" } else { "" };
    format!("{datapath}, {} sessions, {agents} agents{draining}", table.sessions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::report::Table;

    #[test]
    fn the_line_says_what_forwards_how_much_it_has_to_do_and_whether_it_is_about_to_stop() {
        let table = Table { sessions: 2, ..Table::default() };
        let status = Status { datapath: "userspace".to_owned(), table, agents: 5, ..Status::default() };
        assert_eq!(line(&status), "userspace, 2 sessions, 5 agents");
        assert_eq!(line(&Status { draining: true, ..status }), "userspace, 2 sessions, 5 agents, draining");
    }

    #[tokio::test]
    async fn there_is_no_sign_of_life_of_a_driver_that_does_not_answer_or_is_gone() {
        let (asked, mut questions) = mpsc::channel(1);
        let mut ask = AskDriver(asked);
        // It has taken the question, and does nothing.
        let question = {
            let asking = ask.ask();
            tokio::pin!(asking);
            tokio::select! {
                biased;
                line = &mut asking => panic!("nobody has answered: {line:?}"),
                question = questions.recv() => question.unwrap(),
            }
        };
        drop((question, questions));
        assert_eq!(ask.ask().await, None);
    }
}
