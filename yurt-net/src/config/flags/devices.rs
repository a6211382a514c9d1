//! Flags for the node's own devices.

use clap::Args;

use crate::tunnel::Kind;

/// Devices of the node whose addresses are kept.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// vxlan device that keeps its MAC when it is made again, and follows its underlay address; repeatable. "" = none.
    /// See docs/retention.md.
    #[arg(long, value_name = "NAME", default_values = ["flannel.1", "flannel-v6.1"], value_parser = device_name)]
    pub vtep: Vec<String>,
    /// Bridge that keeps its MAC, whichever ports come and go; repeatable. "" = none.
    #[arg(long, value_name = "NAME", default_value = "cni0", value_parser = device_name)]
    pub pin_bridge: Vec<String>,
    /// Repair the entries of the vxlan devices about other nodes of the pool, when such a node is seen to send with
    /// another MAC. See docs/retention.md.
    #[arg(long)]
    pub repair_peers: bool,
}

impl DeviceArgs {
    /// The devices, and which addresses are kept for each.
    pub fn kept(&self) -> Vec<(String, Kind)> {
        let vteps = self.vtep.iter().map(|name| (name, Kind::Vtep));
        let bridges = self.pin_bridge.iter().map(|name| (name, Kind::Bridge));
        vteps
            .chain(bridges)
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, kind)| (name.clone(), kind))
            .collect()
    }
}

/// A name that the kernel accepts, or an empty one.
fn device_name(text: &str) -> Result<String, &'static str> {
    let is_name = text.len() < libc::IFNAMSIZ && !text.contains(['/', ':', ' ']);
    is_name
        .then(|| text.to_owned())
        .ok_or("expected the name of a device, at most 15 bytes long, such as flannel.1")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};

    fn kept(flags: &[&str]) -> Result<Vec<(String, Kind)>, String> {
        let words = ["yurt-net", "run", "--node", "a1", "--source", "file:x"];
        let cli = Cli::try_parse_from(words.iter().chain(flags));
        match cli.map(|cli| cli.command) {
            Ok(Command::Run(args)) => Ok(args.devices.kept()),
            Ok(_) => unreachable!(),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn flannel_s_devices_are_kept_unless_told_otherwise() {
        let named = |names: &[(&str, Kind)]| {
            let names = names.iter();
            Ok(names.map(|&(name, kind)| (name.to_owned(), kind)).collect())
        };
        let default = [
            ("flannel.1", Kind::Vtep),
            ("flannel-v6.1", Kind::Vtep),
            ("cni0", Kind::Bridge),
        ];
        assert_eq!(kept(&[]), named(&default));
        assert_eq!(kept(&["--vtep=", "--pin-bridge="]), named(&[]));
        let others = ["--vtep", "vx0", "--vtep", "vx1", "--pin-bridge="];
        let expected = [("vx0", Kind::Vtep), ("vx1", Kind::Vtep)];
        assert_eq!(kept(&others), named(&expected));
        let error = kept(&["--vtep", "a-name-that-is-too-long"]).unwrap_err();
        assert!(error.contains("at most 15 bytes"), "{error}");
    }
}
