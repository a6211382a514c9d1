//! The maps that Services are served from.

pub(super) mod decode;
pub(super) mod encode;
