//! How much of unfinished frames one connection may make us hold.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of unfinished frames, on all streams of a connection together.
const MAX_UNFINISHED_BYTES: usize = 256 * 1024;

/// One connection's account.
#[derive(Clone, Debug, Default)]
pub struct Unfinished(Arc<AtomicUsize>);

impl Unfinished {
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
    /// All that was read has been used: a frame is finished, or the stream is given up.
    pub fn settle(&self) {
        let held = self.held.swap(0, Ordering::Relaxed);
        self.connection.0.fetch_sub(held, Ordering::Relaxed);
    }

    /// Whether there was room for `bytes` more.
    fn take(&self, bytes: usize) -> bool {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.connection.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_UNFINISHED_BYTES
    }
}

/// A stream that is read on an account.
#[derive(Debug)]
pub struct Metered<R> {
    stream: R,
    share: Share,
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
        let text = "more than 256 KiB of unfinished frames on one connection";
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
    async fn streams_of_a_connection_share_the_account_and_finished_frames_leave_it() {
        let account = Unfinished::default();
        let bytes = vec![0; 2 * MAX_UNFINISHED_BYTES];
        let (mut first, first_share) = account.meter(&bytes[..]);
        let (mut second, second_share) = account.meter(&bytes[..]);
        read(&mut first, MAX_UNFINISHED_BYTES / 2).await.unwrap();
        read(&mut second, MAX_UNFINISHED_BYTES / 2).await.unwrap();
        first_share.settle();
        read(&mut first, MAX_UNFINISHED_BYTES / 2).await.unwrap();
        assert_eq!(read(&mut first, 1).await.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        first_share.settle();
        second_share.settle();
        assert_eq!(account.0.load(Ordering::Relaxed), 0);
    }
}
