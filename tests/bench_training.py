"""How fast views and training are beside the loops in use. A script, not a test: `python tests/bench_training.py [--quick] [--encoder resnet18]`.

Time: CPU time of this process on one thread, medians of interleaved rounds, so that a busy machine changes little; `--threads 2` takes the wall clock
and gives the peer's data loader two workers. Views and images are 32x32. Nothing here is on a GPU.
Views: SimCLR's colour views, from a batch of bytes (ours, kornia, torchvision's batched v2, which draws one set of factors for all) or image by image (lightly, torchvision v2).
Training: one loop of two views, encoder, NT-Xent, backward and SGD, with the same encoder for all; ours stores channels last. The peer is lightly's documented loop: PIL images, its SimCLR transform
in a DataLoader, its NTXentLoss, float32. Freed memory is kept for all of them (`--give-back`: for none; what that costs is the difference).
Peers are measured where they are installed."""
import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bench import interleaved
sys.path.insert(0, str(Path(__file__).parents[1]))
from contrastive_nb.compat import torchvision
from contrastive_nb.encoders import make_encoder
from contrastive_nb.losses import NTXent
from contrastive_nb.optim import Recipe
from contrastive_nb.train import Compute, fit, keep_memory
from contrastive_nb.views import VIEWS
from torchvision.transforms import v2

VIEW = VIEWS['cifar']
GOALS = {'views, eager': 8, 'views, compiled': 14, 'small': {'float32': 2.7, 'bfloat16': 3.5}, 'resnet18': {'float32': 1.3, 'bfloat16': 2.7}}


def pixels(n): return torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

def pictures(x): return [torchvision.transforms.functional.to_pil_image(image) for image in x]

def lightly():
    "Lightly's transform for 32x32 images and its loss, or None."
    try:
        from lightly.loss import NTXentLoss
        from lightly.transforms import SimCLRTransform
    except Exception: return None
    return SimCLRTransform(input_size=32, cj_strength=.5, gaussian_blur=0.), NTXentLoss(temperature=.5)   # .5: jitter .4 .4 .4 .1

def kornia():
    try: import kornia.augmentation as K
    except Exception: return None
    return K.AugmentationSequential(K.RandomResizedCrop((32, 32), scale=(.08, 1.)), K.RandomHorizontalFlip(), K.ColorJitter(.4, .4, .4, .1, p=.8), K.RandomGrayscale(p=.2),
                                    K.Normalize(torch.tensor(VIEW.mean), torch.tensor(VIEW.std)))

def steps_of_torchvision():
    return v2.Compose([v2.RandomResizedCrop(32, scale=(.08, 1.), antialias=True), v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(.4, .4, .4, .1)], p=.8), v2.RandomGrayscale(p=.2),
                       v2.Normalize(VIEW.mean, VIEW.std)])

def bench_views(rounds):
    x, few = pixels(512), 64
    g, pil, real, aug, compose = torch.Generator().manual_seed(0), pictures(pixels(few)), pixels(few)/255, kornia(), steps_of_torchvision()
    runs = {'views, eager': (512, lambda: VIEW(x, g)), 'views, eager, bfloat16': (512, lambda: replace(VIEW, dtype='bfloat16')(x, g)), 'torchvision v2': (few, lambda: [compose(i) for i in real])}
    compiled = replace(VIEW, compile=True)
    try: compiled(x, g); runs['views, compiled'] = 512, lambda: compiled(x, g)
    except Exception as error: print(f'torch.compile does not work here: {type(error).__name__}')
    if found: runs['lightly'] = 2*few, lambda: [found[0](i) for i in pil]
    if aug: runs['kornia'] = 512, lambda: aug(x/255)
    m = interleaved({name: f for name, (_, f) in runs.items()}, rounds, CLOCK)
    speed = {name: n/m[name] for name, (n, _) in runs.items()}
    peers = [p for p in ('lightly', 'kornia', 'torchvision v2') if p in speed]
    print(f"{'views of 32x32':26}{'views/s':>10}" + ''.join(f'{"of " + p:>18}' for p in peers) + f"{'goal (lightly)':>17}")
    for name, v in speed.items(): print(f"{name:26}{v:10,.0f}" + ''.join(f'{v/speed[p]:18.1f}' for p in peers) + f"{GOALS.get(name, ''):>17}", flush=True)

def bench_training(name, B, n_steps, rounds, workers):
    x, loss = pixels(B*n_steps), NTXent(temperature=.5)
    def encoder(): return make_encoder(name, projector=(512, 128) if name!='small' else (64, 64))
    def ours(precision, views=VIEW, **how):
        model, compute = encoder(), Compute(precision=precision, channels_last=True, **how)
        return lambda: fit(model, x, loss, replace(views, dtype=precision), Recipe(n_epochs=1, batch_size=B), generator=torch.Generator().manual_seed(0), compute=compute, progress=False)
    def encoder_alone(precision):
        model, views = encoder(), VIEW.plain(torch.cat([x[:B], x[:B]]))
        model, views = model.to(memory_format=torch.channels_last), views.contiguous(memory_format=torch.channels_last)
        def run():
            for _ in range(n_steps):
                with torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision=='bfloat16'): z = model(views)[1]
                z.float().square().mean().backward()
        return run
    runs = {'float32': ours('float32'), 'bfloat16': ours('bfloat16'), 'encoder alone, float32': encoder_alone('float32'), 'encoder alone, bfloat16': encoder_alone('bfloat16')}
    if COMPILED: runs['bfloat16, compiled'] = ours('bfloat16', views=replace(VIEW, compile=True), compile='default')
    if found:
        class Set(torch.utils.data.Dataset):
            pil = pictures(x)
            def __len__(self): return len(self.pil)
            def __getitem__(self, i): return found[0](self.pil[i])
        loader = torch.utils.data.DataLoader(Set(), batch_size=B, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers>0)
        model = encoder()
        optimizer = torch.optim.SGD(model.parameters(), lr=.3, momentum=.9, weight_decay=1e-4)
        def loop():
            for x0, x1 in loader:
                value = found[1](model(x0)[1], model(x1)[1])
                value.backward()
                optimizer.step()
                optimizer.zero_grad()
        runs['lightly'] = loop
    m, n = interleaved(runs, rounds, CLOCK), 2*B*n_steps
    print(f"\n{name + f', B={B}':26}{'views/s':>10}{'of lightly':>18}{'goal':>10}")
    for key, seconds in m.items():
        print(f"{key:26}{n/seconds:10,.0f}" + (f"{m['lightly']/seconds:18.2f}" if found else f"{'':18}") + f"{GOALS[name].get(key, ''):>10}", flush=True)


if __name__=='__main__':
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument('--quick', action='store_true', help='the small encoder only, few rounds')
    args.add_argument('--threads', type=int, default=1)
    args.add_argument('--encoder', nargs='*', choices=['small', 'resnet18'])
    args.add_argument('--no-views', action='store_true')
    args.add_argument('--compile', action='store_true', help='a compiled encoder too; it takes minutes')
    args.add_argument('--give-back', action='store_true', help='leave the C library as it is')
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    CLOCK, COMPILED, found = time.process_time if args.threads==1 else time.perf_counter, args.compile, lightly()
    kept = not args.give_back and keep_memory()
    print(f"torch {torch.__version__}, {args.threads} thread(s), freed memory {'kept' if kept else 'given back'}, lightly {'found' if found else 'not installed'}\n")
    if not args.no_views: bench_views(3 if args.quick else 9)
    for name in args.encoder if args.encoder is not None else ['small'] if args.quick else ['small', 'resnet18']:
        bench_training(name, *((256, 4) if name=='small' else (64, 1)), 2 if args.quick else 3, workers=2*(args.threads>1))
