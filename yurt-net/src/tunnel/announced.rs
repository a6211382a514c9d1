//! What flannel tells the peers of this node, in annotations of its Node. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::is_unicast;
use crate::device::Mac;

const PREFIX: &str = "flannel.alpha.coreos.com/";
const VXLAN: &str = "vxlan";
/// The VNI that flannel means when it names none.
const DEFAULT_VNI: u32 = 1;

/// A vxlan device as flannel announces it to peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncedVtep {
    /// The MAC that peers send inner frames to.
    pub mac: Mac,
    /// The address that peers send outer packets to, if it is announced.
    pub underlay: Option<IpAddr>,
}

/// The devices that the annotations announce, and what is wrong with the annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The devices, by the name that flannel gives each.
    pub devices: BTreeMap<String, AnnouncedVtep>,
    /// One line for each fault, which says what to do.
    pub complaints: Vec<String>,
}

/// `{"VNI":1,"VtepMAC":"0a:..."}`
#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: Option<u32>,
    #[serde(rename = "VtepMAC")]
    mac: Mac,
}

/// The annotations of an address family, and how flannel names its device.
struct Family {
    data: &'static str,
    underlay: &'static str,
    device: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        data: "backend-data",
        underlay: "public-ip",
        device: "flannel.",
    },
    Family {
        data: "backend-v6-data",
        underlay: "public-ipv6",
        device: "flannel-v6.",
    },
];

impl Announced {
    /// Reads the annotations of this node's Node. A bad annotation loses only its own address family.
    pub fn read(node: &str, annotations: &BTreeMap<String, String>) -> Self {
        let get = |key: &str| annotations.get(&format!("{PREFIX}{key}"));
        let mut announced = Self::default();
        // Other backends of flannel keep other things in these annotations.
        if get("backend-type").is_some_and(|backend| backend != VXLAN) {
            return announced;
        }
        for family in &FAMILIES {
            let Some(text) = get(family.data).filter(|text| *text != "null") else {
                continue;
            };
            let mut complain = |key: &str, why: String| {
                announced.complaints.push(format!(
                    "Node {node}: annotation {PREFIX}{key}: {why}; the agent ignores it: restart flannel on the node, which writes it anew"
                ));
            };
            let data: BackendData = match serde_json::from_str(text) {
                Ok(data) => data,
                Err(error) => {
                    complain(family.data, error.to_string());
                    continue;
                }
            };
            if !is_unicast(data.mac) {
                complain(
                    family.data,
                    format!("{} cannot be the MAC of a device", data.mac),
                );
                continue;
            }
            let underlay = get(family.underlay).map(|text| text.parse());
            let underlay = underlay.transpose().unwrap_or_else(|_| {
                complain(family.underlay, "it is not an IP address".to_owned());
                None
            });
            let vni = data.vni.unwrap_or(DEFAULT_VNI);
            let vtep = AnnouncedVtep {
                mac: data.mac,
                underlay,
            };
            announced
                .devices
                .insert(format!("{}{vni}", family.device), vtep);
        }
        announced
    }
}
