//! Imports that still go in the wrong direction, each with the change that will end it. The list only gets shorter.

use super::floors::Breaches;

/// The exceptions of the agent's crate.
pub(crate) const AGENT: &[Breaches] = &[];
