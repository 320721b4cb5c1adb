"""Skip branches and Skip-Cache on whole pipelines, as a LoRA is loaded onto one."""
