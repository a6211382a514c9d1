//! Faults that a script puts between a client and the server's answer.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::StatusCode;
use http::header;
use tokio::time::sleep;

use super::call::Answer;
use super::call::Call;
use super::call::Frames;
use super::call::Verb;
use super::resource::Resource;

/// By then, what was sent before a cut is on its way.
const FLUSHED: Duration = Duration::from_millis(30);

/// Selects requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct On {
    resource: Option<Resource>,
    verb: Option<Verb>,
}

impl On {
    /// Every request.
    pub const ANY: Self = Self {
        resource: None,
        verb: None,
    };

    /// All requests about a resource.
    pub fn resource(resource: Resource) -> Self {
        Self {
            resource: Some(resource),
            verb: None,
        }
    }

    /// The same verb on any resource.
    pub fn verb(verb: Verb) -> Self {
        Self {
            resource: None,
            verb: Some(verb),
        }
    }

    /// Gets of an object.
    pub fn get(resource: Resource) -> Self {
        Self::both(resource, Verb::Get)
    }

    /// Lists of a resource.
    pub fn list(resource: Resource) -> Self {
        Self::both(resource, Verb::List)
    }

    /// Watches of a resource that are being opened.
    pub fn watch(resource: Resource) -> Self {
        Self::both(resource, Verb::Watch)
    }

    fn both(resource: Resource, verb: Verb) -> Self {
        Self {
            resource: Some(resource),
            verb: Some(verb),
        }
    }

    pub(super) fn holds(self, resource: Option<Resource>, verb: Verb) -> bool {
        self.resource.is_none_or(|wanted| resource == Some(wanted))
            && self.verb.is_none_or(|wanted| verb == wanted)
    }
}

/// A fault of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No fault: keeps the place of a request in a script.
    None,
    /// An error in the apiserver's words; 429 has `Retry-After: 1`.
    Status(u16),
    /// An error with `Retry-After`, in seconds.
    RetryAfter(u16, u32),
    /// The connection is reset before anything is answered.
    Reset,
    /// The connection is closed before anything is answered.
    Close,
    /// The request is answered properly, and then the connection is closed.
    LastAnswer,
    /// The answer never comes.
    Stall,
    /// The head of the answer comes, but its body never does.
    StallBody,
    /// The answer comes later.
    Delay(Duration),
    /// The connection breaks after this many bytes of the body. A shorter body is sent completely, but without its end.
    Cut(usize),
    /// The body stops after this many bytes, and nothing follows.
    StallAfter(usize),
    /// The body comes in pieces of this many bytes, with a pause after each.
    Drip(usize, Duration),
    /// 200 with another content type and body.
    Body(&'static str, Vec<u8>),
    /// A list without items.
    EmptyList,
    /// A list of the first items only.
    PartOfList(usize),
    /// A list with another version, such as an older one.
    ListVersion(u64),
}

/// The faults that are still to come.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Each happens once.
    next: VecDeque<(On, Fault)>,
    /// The last one that matches happens, until all are cleared.
    always: Vec<(On, Fault)>,
}

impl Script {
    pub(super) fn next(&mut self, on: On, faults: impl IntoIterator<Item = Fault>) {
        self.next
            .extend(faults.into_iter().map(|fault| (on, fault)));
    }

    pub(super) fn always(&mut self, on: On, fault: Fault) {
        self.always.push((on, fault));
    }

    pub(super) fn clear(&mut self) {
        self.next.clear();
        self.always.clear();
    }

    pub(super) fn pending(&self) -> usize {
        self.next.len()
    }

    pub(super) fn take(&mut self, call: &Call) -> Fault {
        let resource = call.target.as_ref().map(|target| target.resource);
        let fits = |on: &On| on.holds(resource, call.verb);
        if let Some(index) = self.next.iter().position(|(on, _fault)| fits(on)) {
            return self.next.remove(index).map_or(Fault::None, |(_on, f)| f);
        }
        let always = self.always.iter().rev().find(|(on, _fault)| fits(on));
        always.map_or(Fault::None, |(_on, fault)| fault.clone())
    }
}

/// An error with any status code.
pub(super) fn refusal(call: &Call, code: u16) -> Answer {
    let resource = call.target.as_ref().map(|target| target.resource);
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status == StatusCode::FORBIDDEN {
        return Answer::forbidden(resource, call.verb);
    }
    let message = match code {
        401 => "Unauthorized",
        404 => "the server could not find the requested resource",
        410 => "too old resource version",
        429 => "too many requests, please try again later",
        _ => status.canonical_reason().unwrap_or("an error"),
    };
    Answer::status(status, message)
}

/// The answer after the fault. Faults before any answer are handled elsewhere.
pub(super) fn spoil(mut answer: Answer, fault: Fault) -> Answer {
    let frames = answer.frames;
    answer.frames = match fault {
        Fault::StallBody => {
            drop(frames);
            Box::pin(stream::pending())
        }
        Fault::StallAfter(bytes) => Box::pin(first(frames, bytes).chain(stream::pending())),
        Fault::Cut(bytes) => {
            // A client that knows the length would not miss the end.
            answer.length = answer.length.filter(|length| *length > to_u64(bytes));
            Box::pin(first(frames, bytes).chain(stream::once(broken())))
        }
        Fault::Drip(bytes, pause) => drip(frames, bytes.max(1), pause),
        Fault::LastAnswer => {
            answer.frames = frames;
            return answer.with(header::CONNECTION, "close");
        }
        _ => frames,
    };
    answer
}

/// A 200 that no apiserver would send.
pub(super) fn foreign(content_type: &str, body: Vec<u8>) -> Answer {
    let answer = Answer::whole(StatusCode::OK, content_type, body);
    answer.with(header::CONTENT_TYPE, content_type)
}

fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

async fn broken() -> io::Result<Bytes> {
    sleep(FLUSHED).await;
    Err(io::Error::other("cut by the script"))
}

fn first(frames: Frames, bytes: usize) -> Frames {
    Box::pin(stream::unfold(
        (frames, bytes),
        async |(mut frames, left)| {
            if left == 0 {
                return None;
            }
            let frame = frames.next().await?;
            let frame = frame.map(|bytes| bytes.slice(..bytes.len().min(left)));
            let left = left - frame.as_ref().map_or(left, Bytes::len);
            Some((frame, (frames, left)))
        },
    ))
}

fn drip(frames: Frames, size: usize, pause: Duration) -> Frames {
    let state = (frames, Bytes::new(), true);
    Box::pin(stream::unfold(
        state,
        move |(mut frames, mut held, is_first)| async move {
            if !is_first {
                sleep(pause).await;
            }
            while held.is_empty() {
                held = match frames.next().await? {
                    Ok(bytes) => bytes,
                    Err(error) => return Some((Err(error), (frames, held, false))),
                };
            }
            let piece = held.split_to(size.min(held.len()));
            Some((Ok(piece), (frames, held, false)))
        },
    ))
}
