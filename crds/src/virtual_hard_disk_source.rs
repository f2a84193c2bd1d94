//! What a virtual hard disk starts with.

use crate::reference::{LocalReference, PATH_MESSAGE, PATH_RULE};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// CEL: exactly one source is given.
const ONE_RULE: &str = "[has(self.image), has(self.http), has(self.cloneRef), has(self.linkedRef)].filter(given, given).size() == 1";

/// CEL: an address on the web without a user's name, password or fragment.
const URL_RULE: &str = r#"self.matches('^https?://([A-Za-z0-9.-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?(/[!-"$-~]*)?$')"#;

/// What a disk starts with: exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(ONE_RULE).message("source must have exactly one of image, http, cloneRef and linkedRef"))]
pub struct DiskSource {
    /// A disk image in a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A disk image on the web, which the host downloads into the disk's pool and removes again when the disk is made of it. Both need room there meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// Another disk, in the same namespace, whose content is copied while no machine uses it. A differencing disk is copied with what it has from its parents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_ref: Option<LocalReference>,
    /// A linked disk, in the same namespace, whose physical disk is copied on its host. Nothing else may use that disk meanwhile. A dynamic disk needs room for all of it, since what of it is zero is not known before it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked_ref: Option<LocalReference>,
}

/// The physical disk that a linked disk stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct LinkedDisk {
    /// Name of the Host that has it. The linked disk is made there and stays there, even in a shared pool.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Its path on that host, in /dev/disk/by-id, whose names stay. A whole disk, not a partition or a volume, which the host does not use.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^/dev/disk/by-id/[!-.0-~]+$') && !self.matches('/[.]{1,2}$')").message("device must be /dev/disk/by-id/ and a name, in printable ASCII: other names of disks change"))]
    pub device: String,
    /// Its serial number, as the system tells it. Another one is refused. Omitted: what the disk says when it is linked; it is told in status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub serial: Option<String>,
}

/// A disk image in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct ImageSource {
    /// Name of the pool, as in the Host's `spec.pools`. One that holds disks is refused: another disk is copied by cloneRef.
    #[schemars(length(min = 1, max = 63))]
    pub pool: String,
    /// Path within the pool.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new(PATH_RULE).message(PATH_MESSAGE))]
    pub path: String,
    /// Format of the image; never guessed. Default: Raw.
    #[serde(default)]
    pub format: ImageFormat,
    /// SHA-256 of the image as 64 hexadecimal digits. An image with another sum is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(equal = 64), regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: Option<String>,
}

/// A disk image on the web.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct HttpSource {
    /// Its address, http or https, at most 2048 characters. The server must say how long the image is, may redirect 5 times, and has to be found at another address than the host's own and link-local ones. Put no secret into it: who may read this object can read it.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new(URL_RULE).message("url must begin with http:// or https:// and a host's name or address, without a user, a password or a fragment, in printable ASCII"))]
    pub url: String,
    /// SHA-256 of the image as 64 hexadecimal digits. An image with another sum is refused.
    #[schemars(length(equal = 64), regex(pattern = "^[0-9a-fA-F]{64}$"))]
    pub sha256: String,
    /// Format of the image; never guessed. Default: Raw.
    #[serde(default)]
    pub format: ImageFormat,
}

/// Format of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ImageFormat {
    /// The bytes of the disk, one after another.
    #[default]
    Raw,
    /// A virtual hard disk in the VHD format, of any type. The parents of a differencing one are looked for in the image's pool, where it says that they are and beside it; one on the web may have none. VHDX, qcow2 and VMDK are refused: convert them first.
    #[serde(rename = "VHD")]
    Vhd,
}
