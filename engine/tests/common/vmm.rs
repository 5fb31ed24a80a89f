//! A VMM that takes its time: it keeps every request with its token until the test says what becomes of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use ecmdq_engine::rules::Request;
use ecmdq_engine::{OnRequest, Token};

/// A handle to the VMM; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Vmm(Arc<Mutex<VecDeque<(Request, Token)>>>);

impl Vmm {
    pub fn on_request(&self) -> Option<OnRequest> {
        let kept = self.0.clone();
        Some(Box::new(move |request, token| kept.lock().unwrap().push_back((request, token))))
    }

    /// How many requests it has.
    pub fn waiting(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The oldest request.
    pub fn take(&self) -> (Request, Token) {
        self.0.lock().unwrap().pop_front().expect("the VMM was asked for something")
    }

    /// Completes the oldest request, and says what it was.
    pub fn complete(&self) -> Request {
        let (request, token) = self.take();
        token.complete();
        request
    }
}

/// What a VMM does with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Complete,
    Reject,
    Drop,
}

impl Act {
    pub fn on(self, token: Token) {
        match self {
            Self::Complete => token.complete(),
            Self::Reject => token.reject(),
            Self::Drop => drop(token),
        }
    }
}
