//! The admin socket: how commands ask the daemon that runs on the same host.
//!
//! A Unix socket that its owner and group may use, and root: who asks is known by what the kernel says, and the group may look
//! only. Nothing changes in a running daemon but through it (or by a signal, which takes the same user). One JSON object on
//! one line is asked ([`Request`]), one JSON value on one line is answered; then the connection ends. Relay and agent daemon
//! answer the same requests, each in its own terms.

mod asker;
mod peer_groups;
mod places;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::config::RelayHint;
use crate::file_owner::refusal_hint;
use crate::identity::NodeId;
use crate::protocol::SessionId;
use crate::protocol::body::MAX_BODY_TEXT_LEN;
use crate::relay::bans::BanSubject;
use crate::relay::datapath;
use asker::{Credentials, Owner};
use places::Places;

/// A question to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who is connected (`net peers`).
    Peers,
    /// What sessions there are (`net sessions`).
    Sessions,
    /// What forwards, and what became of the packets (`xdp status`).
    Status,
    /// Which configuration is in effect (`config show --running`).
    Settings,
    /// Read the configuration file again, and apply what can be applied (`config reload`).
    Reload,
    /// An agent sends a message (`net send`).
    Send {
        /// To whom.
        target: NodeId,
        /// What it is about.
        topic: Option<String>,
        /// The content.
        body: Value,
    },
    /// End one session or offer.
    EndSession {
        /// Which.
        #[serde(with = "as_text")]
        session: SessionId,
    },
    /// End all sessions and offers of a node: at a relay its own, at an agent those with it.
    EndSessionsOf {
        /// Which.
        node: NodeId,
    },
    /// A relay takes no new sessions from now on, has its agents move, and stops when none uses it any more (`drain`).
    Drain {
        /// After so many seconds it stops, whoever still uses it.
        deadline_s: Option<u64>,
        /// The relay that agents may move to.
        hint: Option<RelayHint>,
    },
    /// What would become of a packet (`explain`). It changes nothing, and tells of one session more than listings do.
    Explain {
        /// Address and port that it comes from.
        source: SocketAddr,
        /// The relay's address and port that it comes to.
        destination: SocketAddr,
        /// What it is like.
        packet: AskedPacket,
    },
    /// A relay has a connected agent connect to it anew, and tell who answers (`doctor --from`).
    Probe {
        /// Which agent.
        agent: NodeId,
    },
    /// A relay ends its sessions, tells its agents and stops (`stop`). It is done when the connection ends.
    Stop,
    /// Who may not connect (`bans`).
    Bans,
    /// Keep somebody from connecting (`bans add`).
    AddBan {
        /// Whom.
        subject: BanSubject,
        /// For how many seconds; none: as long as others are banned.
        seconds: Option<u64>,
    },
    /// Let somebody in again (`bans lift`).
    LiftBan {
        /// Whom.
        subject: BanSubject,
    },
}

/// A packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AskedPacket {
    /// A whole Ethernet frame, in hexadecimal digits.
    Frame(#[serde(with = "as_digits")] Vec<u8>),
    /// One that the relay makes up, with so many bytes of UDP payload.
    PayloadBytes(u16),
}

impl From<AskedPacket> for datapath::Packet {
    fn from(asked: AskedPacket) -> datapath::Packet {
        match asked {
            AskedPacket::Frame(frame) => datapath::Packet::Frame(frame),
            AskedPacket::PayloadBytes(payload) => datapath::Packet::Made { payload },
        }
    }
}

/// Bytes as hexadecimal digits.
mod as_digits {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}", Digits(bytes)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::bytes_of_digits(&text)
            .ok_or_else(|| D::Error::custom("expected two hexadecimal digits a byte"))
    }

    struct Digits<'b>(&'b [u8]);

    impl std::fmt::Display for Digits<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
}

/// Bytes of two hexadecimal digits each.
pub fn bytes_of_digits(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

/// A session id as listings show it. On the wire it is bytes.
mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::protocol::SessionId;

    pub fn serialize<S: Serializer>(session: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(session)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Request {
    /// Whether it may change anything, here or elsewhere: whatever is not known to only look.
    fn changes(&self) -> bool {
        use Request::{Bans, Peers, Sessions, Settings, Status};
        !matches!(self, Peers | Sessions | Status | Settings | Bans)
    }

    /// Whether a daemon that is started now can answer what is asked, and not whether there is anything to end in one that
    /// does not run.
    fn can_be_asked_of_a_new_daemon(&self) -> bool {
        use Request::{Explain, Peers, Send, Sessions, Settings, Status};
        matches!(self, Peers | Sessions | Status | Settings | Send { .. } | Explain { .. })
    }

    /// How long the daemon may take to answer.
    fn patience(&self) -> Duration {
        match self {
            // A relay may have to be dialled, a session paired, the peer connected to, and it has to answer.
            Request::Send { .. } => Duration::from_secs(40),
            // The agent has its time for it.
            Request::Probe { .. } => Duration::from_secs(10),
            // Agents hear of it, and may be slow.
            Request::Stop => Duration::from_secs(20),
            _ => PATIENCE,
        }
    }
}

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Asked {
    /// The question.
    pub request: Request,
    /// Where the answer goes.
    pub answer: Asker,
}

/// Who waits for an answer: a JSON value, or a sentence why there is none.
pub type Asker = oneshot::Sender<Result<Value, String>>;

/// A bound admin socket. As long as it lives, no other daemon can have the same path.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Longest request line, in bytes: a message's body, and what stands around it.
const MAX_REQUEST_BYTES: u64 = 4096 + MAX_BODY_TEXT_LEN as u64;

/// Longest answer, in bytes: a list of a million sessions is shorter.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// Connections that may wait to be looked at.
const MAX_WAITING: i32 = 128;

/// A connection is given up after this without a word, on either side.
const PATIENCE: Duration = Duration::from_secs(5);

impl AdminSocket {
    /// Takes the lock of `path` (a file beside it, which stays, mode 0600), and binds the socket, mode 0660; directories
    /// that are missing are made, mode 0700. A socket that a dead
    /// daemon left behind is replaced. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Another daemon has it, or the directory cannot be written.
    pub fn bind(path: &Path) -> Result<AdminSocket, BindError> {
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(lock_path(path))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BindError::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // The lock is ours, so whoever made this socket is dead.
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(failed(source)),
            _ => {}
        }
        let listener = listen(path).and_then(UnixListener::from_std).map_err(failed)?;
        // What the umask has taken away beyond what others may have.
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
        Ok(AdminSocket { listener, path: path.to_owned(), _lock: lock })
    }

    /// Passes every question on to `asked`, until the future is dropped. Once the receiver is, whoever asks is told that the
    /// daemon stops.
    pub async fn serve(self, asked: mpsc::Sender<Asked>) {
        let places = Places::of(Owner::of_process());
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                // Out of file descriptors: pause instead of spinning.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let asker = match Credentials::of_peer(&stream) {
                Ok(asker) => asker,
                Err(error) => {
                    tracing::debug!(%error, "an admin connection does not say whose it is");
                    continue;
                }
            };
            let Some(place) = places.enter(&asker) else {
                tracing::debug!(user = asker.user, "too many ask on the admin socket");
                let why = "too many are asking this daemon: ask again in a few seconds";
                let _not_told = refuse(stream, why.to_owned());
                continue;
            };
            let asked = asked.clone();
            tokio::spawn(async move {
                let Some(_turn) = place.turn().await else { return };
                if let Err(error) = converse(stream, asker, asked).await {
                    tracing::debug!(%error, "an admin connection failed");
                }
            });
        }
    }
}

/// A listening socket at `path` that at no time anyone may use beyond [`SOCKET_MODE`]: Linux gives the file the mode of the
/// socket at the time it is bound, less the umask.
fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let socket = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
    socket.set_permissions(Permissions::from_mode(SOCKET_MODE))?;
    let socket = Socket::from(OwnedFd::from(socket));
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(MAX_WAITING)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

/// Asks the daemon behind the admin socket at `path`.
///
/// # Errors
/// No daemon answers there, or it answers with an error.
pub fn ask(path: &Path, request: Request) -> Result<Value, AskError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            AskError::NotRunning { path: path.to_owned(), start: request.can_be_asked_of_a_new_daemon() }
        }
        _ => AskError::Io { path: path.to_owned(), source },
    };
    let stream = std::os::unix::net::UnixStream::connect(path).map_err(failed)?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    // A daemon that is late says so itself.
    let until = Instant::now() + request.patience() + 2 * PATIENCE;
    let answer = exchange(stream, &line, until).map_err(failed)?;
    if answer.is_empty() {
        return Err(AskError::Ended { path: path.to_owned() });
    }
    match serde_json::from_slice(&answer)? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(why) => Err(AskError::Refused(why)),
    }
}

/// The line that is answered to `question`, if it is `until` then.
fn exchange(
    mut stream: std::os::unix::net::UnixStream,
    question: &str,
    until: Instant,
) -> io::Result<Vec<u8>> {
    let left = || match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut)),
        left => Ok(left),
    };
    stream.set_write_timeout(Some(left()?))?;
    match stream.write_all(question.as_bytes()) {
        // Who takes no more questions says why before it hangs up.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let (mut answer, mut part) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        let read = match stream.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => part.get(..read?).unwrap_or_default(),
        };
        answer.extend_from_slice(read);
        if read.is_empty() || read.ends_with(b"\n") {
            return Ok(answer);
        }
        if answer.len() > MAX_ANSWER_BYTES {
            let why = format!("its answer is longer than {MAX_ANSWER_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    }
}

/// Has the relay behind the admin socket at `path` end its sessions and stop, and waits until it has.
///
/// # Errors
/// No relay answers there, or another daemon does afterwards.
pub fn stop(path: &Path) -> Result<(), AskError> {
    match ask(path, Request::Stop) {
        Ok(_) | Err(AskError::Ended { .. }) => {}
        // It was stopping already.
        Err(AskError::Refused(why)) if why == STOPPING => {}
        Err(error) => return Err(error),
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(_) => Ok(()),
        Ok(_) => Err(AskError::StartedAgain { path: path.to_owned() }),
    }
}

/// The answer of a daemon that stops already.
pub const STOPPING: &str = "the daemon is stopping";

/// Keeps a daemon from starting with the admin socket `path` as long as the file is open. `None`: none was ever started.
///
/// # Errors
/// A daemon runs, or the lock cannot be opened.
pub fn lock_out(path: &Path) -> Result<Option<File>, AskError> {
    let failed = |source| AskError::Io { path: path.to_owned(), source };
    let lock = match OpenOptions::new().write(true).open(lock_path(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock.map_err(failed)?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(AskError::Running { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// The lock that belongs to an admin socket.
fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// No admin socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon has it.
    #[error("another daemon has the admin socket {}: stop it, or set ATLAS_ROOT or [admin] socket to another place", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The file system says no.
    #[error("admin socket {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody is there.
    #[error(
        "no daemon is running here: nothing answers at {} (if `[admin] socket` was just changed, the daemon has the old one \
         until it is restarted); if one runs as another user or with another ATLAS_ROOT, ask it \
         as that user, with `sudo -u atlas-relay` before this command{}",
        path.display(),
        if *start { "; if none does, `atlas-relay net listen` starts one here" } else { "" }
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// Whether one that is started can be asked this.
        start: bool,
    },
    /// It has gone while it was asked.
    #[error("the daemon behind {} has stopped before it answered", path.display())]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// It has stopped, and there is one again.
    #[error(
        "the relay has stopped, but a daemon answers at {} again: whoever starts it has to stop it, as `systemctl stop` \
         does", path.display()
    )]
    StartedAgain {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody is there, who must not be.
    #[error("a daemon is running here ({} is its admin socket): `atlas-relay stop` ends it, and removes what it has attached", path.display())]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// The socket fails.
    #[error("{}: {source}{}", path.display(), refusal_hint(path, source))]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon cannot answer.
    #[error("{0}")]
    Refused(String),
    /// The answer is not what a daemon of this version says.
    #[error("the daemon's answer is not understood ({0}): is it of another version?")]
    Json(#[from] serde_json::Error),
}

/// The line that is answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// Answers a connection that waits for nothing.
fn refuse(stream: UnixStream, why: String) -> io::Result<()> {
    stream.into_std()?.write_all(&as_line(&Answer::Error(why))?)
}

/// An answer as it is written.
fn as_line(answer: &Answer) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(line)
}

async fn converse(stream: UnixStream, asker: Credentials, asked: mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(MAX_REQUEST_BYTES));
    tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) if let Err(why) = Owner::of_process().permits(&asker, &request) => {
            tracing::warn!(user = asker.user, "refused on the admin socket");
            Answer::Error(why)
        }
        Ok(request) => {
            let late = "the daemon has not answered in time".to_owned();
            tokio::time::timeout(request.patience(), answer(request, &asked))
                .await
                .unwrap_or(Answer::Error(late))
        }
        Err(error) => Answer::Error(format!("not a request of this version: {error}")),
    };
    tokio::time::timeout(PATIENCE, write.write_all(&as_line(&answer)?)).await??;
    write.shutdown().await
}

async fn answer(request: Request, asked: &mpsc::Sender<Asked>) -> Answer {
    let (answer, answered) = oneshot::channel();
    if asked.send(Asked { request, answer }).await.is_err() {
        return Answer::Error(STOPPING.to_owned());
    }
    match answered.await {
        Ok(Ok(value)) => Answer::Ok(value),
        Ok(Err(why)) => Answer::Error(why),
        Err(_) => Answer::Error(STOPPING.to_owned()),
    }
}

#[cfg(test)]
mod tests;
