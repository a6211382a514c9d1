//! Every map, by the programs that use it. Capacities here are defaults; the agent's flags override them.

pub(crate) mod event;
pub(crate) mod guard;
pub(crate) mod packet;
pub(crate) mod service;
pub(crate) mod translate;
pub(crate) mod vtep;
