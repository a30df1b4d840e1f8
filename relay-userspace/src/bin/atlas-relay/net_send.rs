//! `net send`: one message to another agent's application, through the daemon of this node or without one.

use relay_userspace::admin::{self, AskError, Request};
use relay_userspace::agent::{Agent, Delivery, DeliverySnapshot, OutgoingMessage};
use relay_userspace::protocol::body::Body;
use serde::Serialize;
use serde_json::Value;

use crate::args::{Format, Send};
use crate::connected_peer::id_and_path;
use crate::node::{self, Node, runtime};
use crate::output;

/// What is printed with `--json`.
#[derive(Serialize)]
struct Sent {
    /// Whether the daemon has sent it.
    queued: bool,
    #[serde(flatten)]
    delivery: DeliverySnapshot,
}

pub fn run(options: Send) -> anyhow::Result<()> {
    let Send { node, body, topic, format } = options;
    let body = json_or_text(body);
    // Here, before anybody is dialled.
    let message = OutgoingMessage { topic: topic.clone(), reply_to: None, body: Body::of(&body)? };
    let sent = match admin::ask(&node::admin_socket()?, Request::Send { target: node, topic, body }) {
        Ok(answer) => Sent { queued: true, delivery: serde_json::from_value(answer)? },
        Err(AskError::NotRunning { .. }) => {
            let settings = Node::open()?.agent()?;
            let delivery = runtime()?.block_on(async {
                let agent = Agent::spawn(settings);
                let delivered = send(&agent, node, message).await;
                agent.shutdown().await;
                delivered
            })?;
            Sent { queued: false, delivery }
        }
        Err(error) => return Err(error.into()),
    };
    show(&sent, format)
}

/// Text that is no JSON is sent as a JSON string.
fn json_or_text(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

async fn send(
    agent: &Agent,
    to: relay_userspace::identity::NodeId,
    message: OutgoingMessage,
) -> anyhow::Result<DeliverySnapshot> {
    let connection = agent.reach(to).await?;
    let (sent, peer) = (connection.send(message).await, connection.snapshot());
    connection.close().await;
    let Delivery { msg_id, status } = sent?;
    Ok(DeliverySnapshot { msg_id, ack: status.to_string(), peer })
}

fn show(sent: &Sent, format: Format) -> anyhow::Result<()> {
    if format.json {
        return output::json(sent);
    }
    let Sent { queued, delivery: DeliverySnapshot { msg_id, ack, peer } } = sent;
    if *queued {
        output::line(format_args!("Queued   : {msg_id}"));
        output::line(format_args!("Target   : {}", id_and_path(peer)));
    } else {
        output::line(format_args!("Sent to  : {}", id_and_path(peer)));
        output::line(format_args!("Msg ID   : {msg_id}"));
    }
    output::line(format_args!("Ack      : {ack}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_json_is_sent_as_it_is_and_what_is_not_as_a_string() {
        for (text, value) in [
            ("{\"a\": [1]}", json!({ "a": [1] })),
            ("7", json!(7)),
            ("\"7\"", json!("7")),
            ("hello there", json!("hello there")),
            ("{\"a\":", json!("{\"a\":")),
            ("", json!("")),
        ] {
            assert_eq!(json_or_text(text.to_owned()), value, "{text}");
        }
    }
}
