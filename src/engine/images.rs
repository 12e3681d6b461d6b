//! Images: is it here, get it, remove it.
//!
//! A pull may take an hour and is no call with a deadline; it fails when nothing comes for two
//! minutes. Its outcome is known only at the end of the engine's answer, where a late failure stands
//! like one more line of progress.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::{CreateImageInfo, ImageConfig, ImageInspect};
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptions,
};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::error::{EngineError, EngineErrorKind};
use super::op::{self, Op};
use super::{Engine, Fault, labels};
use crate::domain::spec::check_image_reference;

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RegistryAuth {
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) server: Option<String>,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryAuth(***)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageInfo {
    pub(crate) id: String,
    pub(crate) size_bytes: u64,
    /// The image's own user; empty for root.
    pub(crate) user: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) working_dir: String,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
}

/// An image that lightd made.
#[derive(Clone, Debug)]
pub(crate) struct OurImage {
    pub(crate) id: String,
    pub(crate) tags: Vec<String>,
}

/// How far a pull is. Sums grow as the engine learns of further layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PullProgress {
    /// The engine's latest word, such as `Downloading`.
    pub(crate) status: String,
    pub(crate) layers: usize,
    pub(crate) layers_done: usize,
    pub(crate) downloaded_bytes: u64,
    pub(crate) total_bytes: u64,
}

impl Engine {
    /// The image's facts if it is here; `Ok(None)` means that the engine says it is not.
    pub(crate) async fn find_image(&self, image: &str) -> Result<Option<ImageInfo>, EngineError> {
        match self.inspect_image(image).await {
            Ok(found) => Ok(Some(image_info(found))),
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn image_config(&self, image: &str) -> Result<ImageConfig, EngineError> {
        Ok(self.inspect_image(image).await?.config.unwrap_or_default())
    }

    async fn inspect_image(&self, image: &str) -> Result<ImageInspect, EngineError> {
        let target = check_reference(op::INSPECT_IMAGE, image)?;
        self.call(
            op::INSPECT_IMAGE,
            target,
            |docker| async move { docker.inspect_image(image).await },
        )
        .await
    }

    /// Makes sure that the image is here: one that is, is not asked for again.
    pub(crate) async fn ensure(
        &self,
        image: &str,
        auth: Option<RegistryAuth>,
        on_progress: impl FnMut(PullProgress) + Send,
    ) -> Result<ImageInfo, EngineError> {
        if let Some(found) = self.find_image(image).await? {
            return Ok(found);
        }
        self.pull(image, auth, on_progress).await?;
        self.inspect_image(image).await.map(image_info)
    }

    async fn pull(
        &self,
        image: &str,
        auth: Option<RegistryAuth>,
        mut on_progress: impl FnMut(PullProgress) + Send,
    ) -> Result<(), EngineError> {
        let target = check_reference(op::PULL, image)?;
        let failed = |fault| self.noted(EngineError::new(op::PULL, target.clone(), fault));
        let (name, tag) = name_and_tag(image);
        let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
        let docker = self.docker(op::PULL).map_err(|error| failed(Fault::Vendor(error)))?;
        let mut lines =
            std::pin::pin!(docker.create_image(Some(options), None, auth.map(credentials)));
        let mut layers = Layers::default();
        loop {
            match tokio::time::timeout(op::PULL.deadline, lines.next()).await {
                Ok(Some(Ok(line))) => layers.note(line, &mut on_progress),
                Ok(Some(Err(error))) => return Err(failed(Fault::Vendor(error))),
                Ok(None) => break,
                // The registry's silence, as a rule; whether the engine is well its health says.
                Err(_) => {
                    let why = format!("nothing came for {} s", op::PULL.deadline.as_secs());
                    return Err(failed(Fault::Said(why)));
                }
            }
        }
        on_progress(layers.progress());
        Ok(())
    }

    /// `Ok` as well if it is not there; a conflict if a container is made of it.
    pub(crate) async fn remove_image(&self, image: &str) -> Result<(), EngineError> {
        let target = check_reference(op::REMOVE_IMAGE, image)?;
        let removed = self
            .call(op::REMOVE_IMAGE, target, |docker| async move {
                docker.remove_image(image, None::<RemoveImageOptions>, None).await.map(drop)
            })
            .await;
        match removed {
            Err(error) if error.kind() == EngineErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// All images that this node made of containers.
    pub(crate) async fn list_our_images(&self) -> Result<Vec<OurImage>, EngineError> {
        self.list_images(&labels::filter(labels::IMAGE, self.node())).await
    }

    pub(super) async fn list_images(
        &self,
        filters: &HashMap<String, Vec<String>>,
    ) -> Result<Vec<OurImage>, EngineError> {
        let options = ListImagesOptionsBuilder::new().filters(filters).build();
        let found =
            self.call(op::LIST, "images", |docker| async move {
                docker.list_images(Some(options)).await
            })
            .await?;
        let ours = found.into_iter().map(|found| OurImage { id: found.id, tags: found.repo_tags });
        Ok(ours.collect())
    }
}

/// How an image is named in errors, once it is proven that its name cannot break out of the path of a
/// request, where the library does not escape it.
pub(super) fn check_reference(op: Op, image: &str) -> Result<String, EngineError> {
    let target = format!("image {image:.200}");
    match check_image_reference(image) {
        Ok(()) => Ok(target),
        Err(why) => Err(EngineError::said(op, target, EngineErrorKind::Invalid, why)),
    }
}

/// Without a tag the engine would pull all of them.
fn name_and_tag(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        // A tag beside a digest is only a note for people.
        return (untagged(name).0, digest);
    }
    let (name, tag) = untagged(image);
    (name, tag.unwrap_or("latest"))
}

fn untagged(name: &str) -> (&str, Option<&str>) {
    let last_part = name.rfind('/').map_or(0, |at| at + 1);
    match name[last_part..].find(':') {
        Some(at) => (&name[..last_part + at], Some(&name[last_part + at + 1..])),
        None => (name, None),
    }
}

fn credentials(auth: RegistryAuth) -> DockerCredentials {
    DockerCredentials {
        username: Some(auth.username),
        password: Some(auth.password),
        serveraddress: auth.server,
        ..DockerCredentials::default()
    }
}

fn image_info(found: ImageInspect) -> ImageInfo {
    let config = found.config.unwrap_or_default();
    ImageInfo {
        id: found.id.unwrap_or_default(),
        size_bytes: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
        user: config.user.unwrap_or_default(),
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        working_dir: config.working_dir.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
    }
}

/// The engine writes a line per layer many times a second; nobody wants to see them all.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// No image has more; it bounds what a registry can make us keep.
const LAYERS_MAX: usize = 512;

#[derive(Debug, Default)]
struct Layers {
    layers: HashMap<String, Layer>,
    status: String,
    told_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Layer {
    done: bool,
    downloaded: u64,
    total: u64,
}

impl Layers {
    fn note(&mut self, line: CreateImageInfo, on_progress: &mut impl FnMut(PullProgress)) {
        let Some(status) = line.status else { return };
        let known = line.id.filter(|_| line_is_of_a_layer(&status));
        if let Some(id) = known
            && (self.layers.len() < LAYERS_MAX || self.layers.contains_key(&id))
        {
            let layer = self.layers.entry(id).or_default();
            let detail = line.progress_detail.unwrap_or_default();
            let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
            layer.note(&status, bytes(detail.current), bytes(detail.total));
        }
        self.status = status;
        let now = Instant::now();
        if self.told_at.is_none_or(|at| now - at >= TELL_EVERY) {
            self.told_at = Some(now);
            on_progress(self.progress());
        }
    }

    fn progress(&self) -> PullProgress {
        PullProgress {
            status: self.status.clone(),
            layers: self.layers.len(),
            layers_done: self.layers.values().filter(|layer| layer.done).count(),
            downloaded_bytes: self.layers.values().map(|layer| layer.downloaded).sum(),
            total_bytes: self.layers.values().map(|layer| layer.total).sum(),
        }
    }
}

impl Layer {
    fn note(&mut self, status: &str, current: u64, total: u64) {
        match status {
            "Downloading" => {
                self.downloaded = current;
                self.total = self.total.max(total).max(current);
            }
            "Download complete" => self.downloaded = self.total,
            "Pull complete" | "Already exists" => {
                self.downloaded = self.total;
                self.done = true;
            }
            // Extracting and the like count other bytes.
            _ => {}
        }
    }
}

/// The first line bears the tag where others bear the layer: `Pulling from library/debian`.
fn line_is_of_a_layer(status: &str) -> bool {
    !status.starts_with("Pulling from")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pulled_with_one_tag() {
        assert_eq!(name_and_tag("debian"), ("debian", "latest"));
        assert_eq!(name_and_tag("debian:12"), ("debian", "12"));
        assert_eq!(name_and_tag("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(name_and_tag("host:5000/a/b:c"), ("host:5000/a/b", "c"));
        assert_eq!(name_and_tag("a@sha256:0f"), ("a", "sha256:0f"));
        assert_eq!(name_and_tag("h:1/a:t@sha256:0f"), ("h:1/a", "sha256:0f"));
    }

    #[test]
    fn a_name_that_breaks_out_of_a_path_is_refused_before_it_is_sent() {
        let error = check_reference(op::PULL, "a/../../images/evil?force=1").unwrap_err();
        assert_eq!(error.kind(), EngineErrorKind::Invalid);
    }

    #[test]
    fn secrets_are_not_printed() {
        let auth = RegistryAuth {
            username: "user".to_owned(),
            password: "secret".to_owned(),
            server: None,
        };
        assert_eq!(format!("{auth:?}"), "RegistryAuth(***)");
    }

    fn line(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        let json = format!(
            r#"{{"id":"{id}","status":"{status}","progressDetail":{{"current":{current},"total":{total}}}}}"#
        );
        serde_json::from_str(&json).expect("valid JSON")
    }

    #[tokio::test(start_paused = true)]
    async fn progress_sums_layers_and_is_told_at_most_four_times_a_second() {
        let mut layers = Layers::default();
        let mut told = Vec::new();
        for line in [
            line("12", "Pulling from library/debian", 0, 0),
            line("a", "Downloading", 10, 100),
            line("b", "Already exists", 0, 0),
            line("a", "Downloading", 60, 100),
        ] {
            layers.note(line, &mut |progress| told.push(progress));
        }
        assert_eq!(told.len(), 1);
        let seen = layers.progress();
        assert_eq!((seen.layers, seen.layers_done), (2, 1));
        assert_eq!((seen.downloaded_bytes, seen.total_bytes), (60, 100));
        tokio::time::advance(TELL_EVERY).await;
        layers.note(line("a", "Pull complete", 0, 0), &mut |progress| told.push(progress));
        assert_eq!(told.len(), 2);
        assert_eq!((told[1].layers_done, told[1].downloaded_bytes), (2, 100));
    }
}
