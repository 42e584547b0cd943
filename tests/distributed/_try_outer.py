import torch, gradtx
from torch import distributed
from tests.distributed.traffic import Traffic
from tests.distributed.worlds import World

def go(frag, delay, mix, compile):
    rank=distributed.get_rank(); torch.manual_seed(0)
    ps={n:torch.nn.Parameter(torch.randn(s)) for n,s in (("a.w",(3,4)),("a.b",(4,)),("c",(2,)))}
    tx=gradtx.outer(gradtx.adamw(.1),gradtx.sgd(.7,momentum=.9,nesterov=True),6,fragments=frag,delay=delay,mix=mix,process_group=distributed.group.WORLD)
    o=gradtx.as_optimizer(tx,list(ps.items()),compile=compile)
    msgs=[]
    for t in range(1,25):
        for i,(n,v) in enumerate(ps.items()):
            torch.manual_seed(1000*t+10*i+rank)
            v.grad=v.detach().sin()+torch.randn(v.shape)
            if n=="c" and rank==1 and t<13: v.grad=None
        
        with Traffic() as tr: o.step()
        msgs.append((t,tr.messages,tr.reduced))
    st=o.state_dict()["state"]
    return msgs,[v.detach() for v in ps.values()],{k:{s:x for s,x in v.items() if "exp" not in s and s!="step"} for k,v in st.items()}, str(o.explain()), [int(s["step"]) for s in o.state.values()]
if __name__=="__main__":
    w=World(2)
    for args in ((None,0,0.0,False),(("a.*","*"),1,.25,True)):
        a,b=w.run(go,*args)
        print([m for m in a[0] if m[1]])
        print([float((x-y).abs().max()) for x,y in zip(a[1],b[1])])
        print({(k,s):float((x-b[2][k][s]).abs().max()) for k,v in a[2].items() for s,x in v.items()}); print(a[3], a[4], b[4])
    w.stop()
