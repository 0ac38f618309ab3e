"A pre-training run under torchrun: the first process alone writes, and the dataset is that of one process."
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr

WORKER = textwrap.dedent('''
    import sys, torch
    from torch import nn
    import contrastive_nb.experiment as experiment
    from contrastive_nb.experiment import Config, run_pretrain
    from contrastive_nb.encoders import make_encoder

    torch.set_num_threads(1)
    def without_batch_norm(*args, **kwargs):
        "The encoder with group norms, which don't know how many images are here."
        model = make_encoder(*args, **kwargs)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.modules.batchnorm._BatchNorm): setattr(module, name, nn.GroupNorm(1, child.num_features))
        return model

    config = Config(loss='dhel', loss_params=dict(temperature=.3), n_epochs=1, batch_size=64, n_train=256, n_measured=64, projector=[16, 8], device='cpu', keep_encoder=True)
    ours = [run_pretrain(config, sys.argv[1] + '/batch_norm', progress=False)]
    experiment.make_encoder = without_batch_norm
    ours.append(run_pretrain(config, sys.argv[1] + '/group_norm', progress=False))
    print('returned', [ds is not None for ds in ours], flush=True)
''')


def results(script, size, folder):
    folder.mkdir()
    how = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(size)] if size>1 else []
    done = subprocess.run([sys.executable, *how, str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr[-3000:]
    assert (done.stdout.count('[True, True]'), done.stdout.count('[False, False]'))==(1, size-1)
    assert all(sorted(p.name for p in f.iterdir())==['checkpoint.pt', 'encoder.json', 'encoder.safetensors', 'result.nc'] for f in folder.iterdir())
    return {norm: xr.load_dataset(folder/norm/'result.nc') for norm in ('batch_norm', 'group_norm')}


@pytest.mark.slow
def test_torchrun_leaves_the_dataset_of_one_process(tmp_path):
    script = tmp_path/'train.py'
    script.write_text(WORKER)
    one, two = (results(script, size, tmp_path/str(size)) for size in (1, 2))
    same = [v for v in one['group_norm'].data_vars if v not in ('seconds', 'views_per_second', 'peak_memory', 'knn_accuracy', 'probe_accuracy')]
    xr.testing.assert_allclose(two['group_norm'][same], one['group_norm'][same], rtol=1e-3, atol=1e-5)
    for norm in one:
        assert json.loads(two[norm].attrs['data']) and [json.loads(ds[norm].attrs['protocol'])['training']['processes'] for ds in (one, two)]==[1, 2]
        assert set(two[norm])==set(one[norm]) and two[norm].attrs['parameters']==one[norm].attrs['parameters']
    assert abs(two['group_norm'].probe_accuracy - one['group_norm'].probe_accuracy)<=2/360   # images at a border
    assert np.abs(two['batch_norm'].train_loss - one['batch_norm'].train_loss).max()>1e-4    # statistics of other images, as said
