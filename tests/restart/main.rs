//! Restarts: whatever happens to the agent, and whatever it finds when it starts, clients go on being served.
//!
//! Real sockets on a node of the lab, whose agent is killed, started with other flags, or has its pins damaged. Needs
//! root.

mod capacity;
mod claims;
mod cloud;
mod damage;
mod disk;
mod drift;
mod hub;
mod kernel;
mod kills;
mod loading;
mod own_sockets;
mod prefixes;
mod protected;
mod silence;
mod silent_disk;
mod upgrade;
mod world;
