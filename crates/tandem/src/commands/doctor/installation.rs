//! An installation of llmb's workloads: its file, its images, its models, and the space for them.

use std::path::{Path, PathBuf};

use tandem_llmb::install::{image_file, models};

use super::{Check, State, check, program};
use crate::cli_doctor::Purpose;
use crate::commands::install::model_state;
use crate::commands::llmb::installation::{Installation, find_config};
use crate::commands::programs::{find, free_bytes, gib};

pub(super) fn llmb() -> Vec<Check> {
    let p = Purpose::Llmb;
    let install = "`tandem install DIR` makes one";
    let Some(config) = find_config() else {
        let detail = "no cluster_config.yaml here or in $LLMB_INSTALL";
        return vec![check(p, "installation", State::Missing, detail, install)];
    };
    let site = match Installation::load() {
        Ok(site) => site,
        Err(failure) => return vec![check(p, "installation", State::Missing, failure.error.to_string(), "correct the file")],
    };
    let root = PathBuf::from(&site.cluster.llmb_install);
    let free = free_bytes(&root).map_or_else(String::new, |free| format!("; {} free", gib(free)));
    let mut checks = vec![check(p, "installation", State::Ok, format!("{}{free}", config.display()), "")];
    checks.extend(site.notes.iter().map(|note| check(p, "metadata", State::Note, note.clone(), "correct the file")));
    let (mut lacks_image, mut lacks_model) = (false, false);
    let gpu = &site.cluster.gpu_type;
    for workload in site.workloads.iter().filter(|w| site.cluster.installed.contains(&w.key)) {
        for image in workload.images(gpu) {
            let path = root.join("images").join(image_file(image));
            lacks_image |= !path.exists();
            checks.push(presence(p, &format!("{} image", workload.key), &path, path.exists(), "tandem install --only images"));
        }
        for model in models(workload, gpu) {
            let dir = root.join(&model.dir);
            let (is_there, detail) = model_state(&dir, &model);
            lacks_model |= !is_there;
            let (state, fix) = if is_there { (State::Ok, "") } else { (State::Missing, "tandem install --only models") };
            checks.push(check(p, &format!("{} model", workload.key), state, format!("{}: {detail}", dir.display()), fix));
        }
    }
    if lacks_image {
        checks.push(program(
            p,
            "enroot",
            State::Missing,
            "images are made with it",
            "install enroot, or name a folder of images: --image-folder",
        ));
    }
    if lacks_model && find("huggingface-cli").is_none() {
        checks.push(program(p, "hf", State::Missing, "models are fetched with it", "pip install huggingface_hub"));
    }
    checks
}

fn presence(p: Purpose, name: &str, path: &Path, is_there: bool, fix: &str) -> Check {
    match is_there {
        true => check(p, name, State::Ok, path.display().to_string(), ""),
        false => check(p, name, State::Missing, format!("no {}", path.display()), fix),
    }
}
