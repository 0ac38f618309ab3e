"A pre-training run that was killed and started again leaves the dataset of one that was not, bit for bit; each way to compute trains."
import json
from unittest.mock import patch

import pytest
import torch
import xarray as xr

import contrastive_nb.train
from contrastive_nb.checkpoint import save_weights
from contrastive_nb.encoders import load_encoder, make_encoder, save_encoder
from contrastive_nb.experiment import Config, as_dataset, features, prepare, pretrain, probe

TOY = dict(loss='dhel', loss_params=dict(temperature=.3), n_epochs=4, batch_size=64, n_train=256, n_measured=64, projector=[16, 8], device='cpu')
TIMED = ['seconds', 'views_per_second', 'peak_memory']


def result(config, **kwargs):
    data = prepare(config)
    model, history = pretrain(config, data, progress=False, **kwargs)
    (train_h, _), (test_h, test_z) = (features(model, config, images) for images in (data.train, data.test))
    return model, as_dataset(config, history, probe(train_h, test_h, config, data), test_h, test_z).drop_vars(TIMED)


@pytest.mark.parametrize('how', [dict(), dict(optimizer='adamw', precision='bfloat16', n_parts=2, checkpoint_every=2, lr=.01)], ids=['float32', 'bfloat16-parts'])
def test_killed_run_leaves_the_same_dataset(tmp_path, how):
    config = Config(**TOY, **how)
    _, whole = result(config)
    save, written = contrastive_nb.train.save_checkpoint, []
    def save_once(*args, **kwargs):
        if written: raise KeyboardInterrupt
        written.append(save(*args, **kwargs))
    with patch('contrastive_nb.train.save_checkpoint', save_once), pytest.raises(KeyboardInterrupt): pretrain(config, prepare(config), checkpoint=tmp_path/'c.pt', progress=False)
    _, again = result(config, checkpoint=tmp_path/'c.pt')
    xr.testing.assert_identical(again, whole)
    training = json.loads(whole.attrs['protocol'])['training']
    assert training['precision']==config.precision.replace('auto', 'float32') and training['evaluated_on']=='test'


def test_another_seed_or_another_recipe_is_refused(tmp_path):
    pretrain(Config(**TOY), prepare(Config(**TOY)), checkpoint=tmp_path/'c.pt', progress=False)
    for change, text in ((dict(seed=1), 'seed was 0, is 1'), (dict(lr=.1), 'lr was 0.3, is 0.1'), (dict(n_train=320), 'images was'), (dict(views='grey'), 'views was')):
        other = Config(**TOY | change)
        with pytest.raises(ValueError, match='belongs to another training'): pretrain(other, prepare(other), checkpoint=tmp_path/'c.pt', progress=False)
        try: pretrain(other, prepare(other), checkpoint=tmp_path/'c.pt', progress=False)
        except ValueError as error: assert text in str(error)


def test_an_encoder_comes_back_with_its_protocol(tmp_path):
    config = Config(**TOY)
    model, ds = result(config)
    save_encoder(tmp_path/'encoder.safetensors', model, dict(parameters=config.model_dump(), probe_accuracy=ds.probe_accuracy.item()))
    back, card = load_encoder(tmp_path/'encoder.safetensors')
    assert Config(**card['protocol']['parameters'])==config
    x = prepare(config).test.x[:8]/255
    torch.testing.assert_close(back(x), model.eval()(x))


def test_a_card_never_takes_the_place_of_its_weights(tmp_path):
    model = make_encoder('small', projector=(8,))
    for name in ('w.json', 'w', 'w.pt'):
        with pytest.raises(ValueError, match=f'must end in .safetensors.*got .*{name}'): save_encoder(tmp_path/name, model, {})
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('change', [dict(projector=8), dict(name=8), dict(channels='3'), dict(more=1)], ids=str)
def test_a_card_with_a_wrong_encoder_is_refused(tmp_path, change):
    model = make_encoder('small', projector=(8,))
    save_weights(tmp_path/'w.safetensors', model, dict(encoder=model.spec | change))
    with pytest.raises(ValueError, match='the card of .*w.safetensors must name its encoder, by name, .*got {'): load_encoder(tmp_path/'w.safetensors')
