//! How much one connection may make us hold: of one message, and of all messages that are not dealt with yet.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// One connection's account: bytes of frames on all its streams that are unfinished, or that nobody has taken yet.
#[derive(Clone, Debug)]
pub struct Unfinished {
    bytes: Arc<AtomicUsize>,
    most: usize,
    message: usize,
}

impl Unfinished {
    /// An empty account for `most` bytes, and messages of `message` bytes at most.
    pub fn new(most: usize, message: usize) -> Unfinished {
        Unfinished { bytes: Arc::default(), most, message }
    }

    /// The longest message that is taken, in bytes.
    pub fn max_message(&self) -> usize {
        self.message
    }

    /// Lets `stream` be read on this account. What is read counts until [`Share::settle`] is called.
    ///
    /// Once the account is full, reading fails with [`io::ErrorKind::QuotaExceeded`].
    pub fn meter<R>(&self, stream: R) -> (Metered<R>, Share) {
        let share = Share { connection: self.clone(), held: Arc::default() };
        (Metered { stream, share: Share { connection: self.clone(), held: Arc::clone(&share.held) } }, share)
    }
}

/// What one stream holds of the account.
#[derive(Debug)]
pub struct Share {
    connection: Unfinished,
    held: Arc<AtomicUsize>,
}

impl Share {
    /// All that was read has been dealt with.
    pub fn settle(&self) {
        let held = self.held.swap(0, Ordering::Relaxed);
        self.connection.bytes.fetch_sub(held, Ordering::Relaxed);
    }

    /// Whether there was room for `bytes` more.
    fn take(&self, bytes: usize) -> bool {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.connection.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.connection.most
    }
}

impl Drop for Share {
    /// The stream is given up.
    fn drop(&mut self) {
        self.settle();
    }
}

/// A stream that is read on an account.
#[derive(Debug)]
pub struct Metered<R> {
    stream: R,
    share: Share,
}

impl<R> Metered<R> {
    /// The stream, off the account.
    pub fn into_inner(self) -> R {
        self.stream
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Metered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        if self.share.take(read) {
            return Poll::Ready(Ok(()));
        }
        let text = format!(
            "more than {} bytes of unfinished messages on one connection",
            self.share.connection.most
        );
        Poll::Ready(Err(io::Error::new(io::ErrorKind::QuotaExceeded, text)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn read(stream: &mut Metered<&[u8]>, bytes: usize) -> io::Result<usize> {
        stream.read_exact(&mut vec![0; bytes]).await
    }

    #[tokio::test]
    async fn streams_of_a_connection_share_the_account_and_what_is_dealt_with_leaves_it() {
        const MOST: usize = 256 * 1024;
        let account = Unfinished::new(MOST, 1);
        let bytes = vec![0; 2 * MOST];
        let (mut first, first_share) = account.meter(&bytes[..]);
        let (mut second, second_share) = account.meter(&bytes[..]);
        read(&mut first, MOST / 2).await.unwrap();
        read(&mut second, MOST / 2).await.unwrap();
        first_share.settle();
        read(&mut first, MOST / 2).await.unwrap();
        assert_eq!(read(&mut first, 1).await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        drop((first, first_share));
        read(&mut second, MOST / 2).await.unwrap();
        second_share.settle();
        assert_eq!(account.bytes.load(Ordering::Relaxed), 0);
    }
}
